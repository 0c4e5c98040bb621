"""Programs that stay: processes in a sandbox one can talk to, such as MCP servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable


class SandboxProcess(Protocol):
    """A process in a sandbox, with pipes to its standard streams."""

    async def read(self) -> bytes:
        """What it has written to standard output since, at least a byte; empty when it wrote its last."""
        ...

    async def write(self, data: bytes) -> None:
        """Write to its standard input; waits while the process does not read.

        Raises:
            SandboxUnavailableError: it has ended, or closed its standard input.
        """
        ...

    @property
    def last_words(self) -> str:
        """The end of its standard error, at most 4 KiB, for people."""
        ...

    async def aclose(self) -> None:
        """Close its standard input, give it a moment to end, then kill it and all it has started."""
        ...


@runtime_checkable
class KeepsProcesses(Protocol):
    """A sandbox which can do so; not every kind can."""

    async def open_process(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str = "/workspace"
    ) -> SandboxProcess:
        """Start a program, found on the sandbox's PATH.

        Args:
            env: its variables, besides PATH, HOME and the like; none of the session's own.

        Raises:
            SandboxUnavailableError: it could not be started.
            InvalidRequestError: the program, a variable or the directory cannot be passed on.
        """
        ...


@runtime_checkable
class KeepsContainers(Protocol):
    """A sandbox which can start containers beside its own."""

    async def open_container(
        self,
        image: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        volumes: Sequence[tuple[str, str, bool]] = (),
        network: str = "",
    ) -> SandboxProcess:
        """Start a container and speak to its entry point; it is removed when it ends.

        Args:
            volumes: (path on the host, path inside, read only).
            network: of the container engine; empty for none.

        Raises:
            SandboxUnavailableError: it could not be started.
            SandboxRefusedError: a volume is of the host and may not be shown.
        """
        ...
