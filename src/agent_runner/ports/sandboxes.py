"""Where an agent's tools run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class FileProblem(StrEnum):
    """Why a file could not be read or written; the words deepagents knows."""

    NOT_FOUND = "file_not_found"
    DENIED = "permission_denied"
    IS_DIRECTORY = "is_directory"
    INVALID_PATH = "invalid_path"
    TOO_LARGE = "too_large"
    NO_SPACE = "no_space"


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command did.

    Attributes:
        code: exit code; 128 + N when signal N ended it, 124 after a timeout.
        stdout: at most the output limit, the end kept along with the beginning; where the kind
            cannot tell the two apart (Daytona), standard error is in here too.
        timed_out: the time limit ended it; what it had printed is kept.
        truncated: some output was left out.
    """

    code: int
    stdout: bytes
    stderr: bytes
    timed_out: bool = False
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One name in a directory of the workspace. `path` is absolute in the sandbox."""

    path: str
    is_dir: bool
    size: int
    modified: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What a session's sandbox must have.

    Attributes:
        session_id: whose it is.
        env: variables of every process in it, and nothing else of the worker's; kept from repr.
        skills: content hash to a directory on this host with the extracted, verified files; each
            appears read-only at `/bin/skills/{hash}/`.
        previous_id: id of the sandbox the session had, if it had one.
        on_waiting: told, in a sentence for people, that the session waits for others to be done,
            for no more sandboxes may run at once; must not block.
    """

    session_id: str
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    skills: Mapping[str, Path] = field(default_factory=dict)
    previous_id: str = ""
    on_waiting: Callable[[str], None] | None = None


OnOutput = Callable[[str], None]
"""Called with pieces of output, in order, while the command runs; must not block."""


class Sandbox(Protocol):
    """One session's place to run commands. Every kind passes `tests/contract/test_sandbox.py`.

    Commands start in `/workspace`, run as an unprivileged user, with `/tmp` and `/workspace` kept
    from one command to the next. Inside are bash, python3, GNU grep and coreutils.
    """

    @property
    def id(self) -> str:
        """Stable id, to be kept in `session.spec.sandbox_id`."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """What the watcher should know, such as that a lost sandbox was replaced."""
        ...

    async def exec(
        self,
        script: str,
        *,
        cwd: str = "/workspace",
        env: Mapping[str, str] | None = None,
        timeout: timedelta = timedelta(minutes=2),
        on_output: OnOutput | None = None,
        output_limit: int = 1 << 20,
    ) -> ExecResult:
        """Run a bash script, of up to 16 MiB; its standard input is empty.

        A timeout or the cancellation of the caller ends the whole process tree.

        Raises:
            SandboxUnavailableError: the sandbox is gone or does not answer.
        """
        ...

    async def put(self, files: Sequence[tuple[str, bytes]]) -> Sequence[FileProblem | None]:
        """Write files whole, making parent directories; a problem per file, None where it worked.

        Paths are absolute in the sandbox, or relative to `/workspace`. Only below `/workspace` and
        `/tmp` can be written. Links are never followed out of the sandbox.
        """
        ...

    async def get(
        self, paths: Sequence[str], *, limit: int = 64 << 20
    ) -> Sequence[tuple[bytes, None] | tuple[None, FileProblem]]:
        """Read regular files whole, of up to `limit` bytes each."""
        ...


class Workspace(Protocol):
    """The files of a session, also while nothing runs in its sandbox."""

    async def list(self, path: str = "/workspace") -> Sequence[FileEntry]:
        """One directory, by name.

        Raises:
            NotFoundError: no such directory.
            InvalidRequestError: the path leaves the workspace or is no directory.
        """
        ...

    def read(self, path: str, *, chunk_size: int = 1 << 20) -> AsyncIterator[bytes]:
        """Stream a regular file."""
        ...

    async def write(self, path: str, chunks: AsyncIterator[bytes]) -> int:
        """Write a file whole or not at all; returns its size."""
        ...


class SandboxProvider(Protocol):
    """Makes and removes sandboxes of one kind."""

    @property
    def kind(self) -> str:
        """`local`, `unconfined`, `docker` or `daytona`."""
        ...

    async def ensure(self, spec: SandboxSpec) -> Sandbox:
        """The session's sandbox, found running, started again, or made.

        Raises:
            SandboxUnavailableError: not now; try again.
            SandboxRefusedError: not on this machine with these settings; says how to get there.
        """
        ...

    async def stop(self, session_id: str) -> None:
        """Free what a running sandbox uses; its files stay."""
        ...

    async def delete(self, session_id: str) -> None:
        """Remove the sandbox, its processes and its files; nothing happens when there is none."""
        ...

    async def sessions(self) -> Sequence[str]:
        """Ids of the sessions which have anything here, for the reaper."""
        ...

    def workspace(self, session_id: str) -> Workspace:
        """The session's files."""
        ...

    async def sweep(self) -> None:
        """Remove what crashes left that belongs to no session."""
        ...

    async def check(self) -> str:
        """Why this kind does not work here, in words for people; empty when it does."""
        ...

    async def aclose(self) -> None: ...
