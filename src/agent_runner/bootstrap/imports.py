"""Importing a library without another one, which it uses only where it finds it and we do not need."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec


def import_logs() -> None:
    """structlog without rich, which it draws tracebacks with: 5 MiB and 50 ms.

    Ours are plain text before they get there. To be called before anything of ours that logs is imported.
    """
    _import_without("structlog", "rich")


def import_clients() -> None:
    """HTTP clients without the commands they come with, which want pygments and rich: 4 MiB."""
    for client in ("httpx", "httpx2"):
        if find_spec(client) is not None:  # the second one comes with LangSmith's newer releases
            _import_without(client, "pygments")


def import_temporal() -> None:
    """Temporal's worker without pydantic, which its sandbox makes room for: 9 MiB and 100 ms.

    Our workflows need no sandbox. For processes that use pydantic for nothing else.
    """
    _import_without("temporalio.worker", "pydantic")


def _import_without(module: str, optional: str) -> None:
    if module in sys.modules or optional in sys.modules:
        return
    sys.modules[optional] = None  # type: ignore[assignment]  # its import then fails, as where it is missing
    try:
        importlib.import_module(module)
    finally:
        del sys.modules[optional]
