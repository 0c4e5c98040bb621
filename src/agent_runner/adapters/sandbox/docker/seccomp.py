"""Telling an engine our own system call rules."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent_runner.adapters.sandbox.seccomp import seccomp_profile


class SeccompOption:
    """The word for `SecurityOpt`: Docker takes the profile itself, Podman the path of a file.

    A Podman elsewhere, which cannot read our file, keeps its own default profile.
    """

    def __init__(self, version: Mapping[str, Any], url: str) -> None:
        """`version` is the engine's answer to `/version`. Blocks."""
        self._file: Path | None = None
        names = [str(component.get("Name", "")) for component in version.get("Components") or ()]
        if not any("podman" in name.lower() for name in names):
            self.words: Sequence[str] = (f"seccomp={seccomp_profile()}",)
        elif url.startswith("unix://"):
            descriptor, name = tempfile.mkstemp(prefix="agent-runner-seccomp-", suffix=".json")
            with os.fdopen(descriptor, "w") as file:
                file.write(seccomp_profile())
            self._file = Path(name)
            self.words = (f"seccomp={name}",)
        else:
            self.words = ()

    def close(self) -> None:
        """Remove the file. Blocks."""
        if self._file is not None:
            with suppress(FileNotFoundError):
                self._file.unlink()
