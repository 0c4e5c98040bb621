"""A process of the host's with pipes to it, which ends with all its children."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from agent_runner.errors import SandboxUnavailableError

_READ_SIZE: Final = 1 << 16
_LAST_WORDS: Final = 4096
_GRACE: Final = 2.0
"""Seconds a process has to end by itself once its standard input is closed."""
_SETTLE: Final = 5.0


class PipedProcess:
    """A `SandboxProcess`. `start` makes it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._words: deque[bytes] = deque()
        self._errors = asyncio.ensure_future(self._keep_last_words())

    @classmethod
    async def start(
        cls, argv: Sequence[str], *, env: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> PipedProcess:
        """Start a program in a session of its own, on a thread that outlives it (see `run_process`).

        Raises:
            SandboxUnavailableError: it could not be started.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=dict(env),
                pass_fds=tuple(pass_fds),
                start_new_session=True,
                limit=_READ_SIZE,
            )
        except OSError as error:
            raise SandboxUnavailableError(f"The process could not be started: {error}") from error
        return cls(process)

    async def read(self) -> bytes:
        assert self._process.stdout is not None
        return await self._process.stdout.read(_READ_SIZE)

    async def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except (ConnectionError, RuntimeError) as error:
            raise SandboxUnavailableError("The process does not take any input any more.") from error

    @property
    def last_words(self) -> str:
        return b"".join(self._words)[-_LAST_WORDS:].decode(errors="replace").strip()

    async def wait(self) -> int:
        """Return when it has ended, with its exit code; negative for a signal."""
        return await self._process.wait()

    def kill(self) -> None:
        """End it and all it has started, at once.

        What has left the group goes too: it is in a process namespace that ends with its first process.
        """
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def aclose(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        ended = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait([ended], timeout=_GRACE)
        finally:
            self.kill()  # the rest of the group, too, when its leader has ended
            drained = asyncio.ensure_future(self._drain())
            await asyncio.wait([ended, drained, self._errors], timeout=_SETTLE)
            drained.cancel()
            self._errors.cancel()

    async def _drain(self) -> None:
        """Read what nobody wanted: a pipe is closed once it has run dry."""
        while await self.read():
            pass

    async def _keep_last_words(self) -> None:
        assert self._process.stderr is not None
        while data := await self._process.stderr.read(_READ_SIZE):
            self._words.append(data[-_LAST_WORDS:])
            while len(self._words) > 1 and sum(map(len, self._words)) - len(self._words[0]) >= _LAST_WORDS:
                self._words.popleft()
