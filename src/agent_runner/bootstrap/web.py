"""The web port, beside a control plane that serves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent_runner.settings import Settings

_ANY = ("0.0.0.0", "[::]")  # noqa: S104 (looked for, not listened on)


@asynccontextmanager
async def web_port(settings: Settings, server: str) -> AsyncIterator[str]:
    """Serve the web port; gives its URL, empty where it is off.

    Args:
        server: `host:port` the control plane listens on.
    """
    if settings.web_listen == "off":
        yield ""
        return
    from agent_runner.console.server import Console

    host, _, port = server.rpartition(":")
    console = Console(
        settings.web_listen,
        f"127.0.0.1:{port}" if host in _ANY else server,
        settings.key,
        # A second stack on this machine is no mistake; a port somebody chose is meant.
        elsewhere="web_listen" not in settings.given,
    )
    try:
        yield await console.start()
    finally:
        await console.stop()
