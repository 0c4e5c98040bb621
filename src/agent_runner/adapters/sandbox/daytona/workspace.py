"""A session's files for people, at Daytona; the sandbox is started for it if need be."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from agent_runner.adapters.sandbox.daytona.sandbox import DaytonaSandbox
from agent_runner.adapters.sandbox.problems import checked_path, raise_problem
from agent_runner.ports.sandboxes import FileEntry


class DaytonaWorkspace:
    """The port's `Workspace` at Daytona. Files pass through this process's memory whole."""

    def __init__(self, wake: Callable[[], Awaitable[DaytonaSandbox]]) -> None:
        """`wake` finds the session's sandbox, or starts it."""
        self._wake = wake

    async def list(self, path: str = "/workspace") -> Sequence[FileEntry]:
        frames = await (await self._wake()).files("list", {"path": checked_path(path)})
        raise_problem(json.loads(next(frames)), path)
        return [FileEntry(*entry) for entry in json.loads(next(frames))]

    async def read(self, path: str, *, chunk_size: int = 1 << 20) -> AsyncIterator[bytes]:
        frames = await (await self._wake()).files("read", {"path": checked_path(path)})
        raise_problem(json.loads(next(frames)), path)
        while frame := next(frames):
            for start in range(0, len(frame), chunk_size):
                yield frame[start : start + chunk_size]

    async def write(self, path: str, chunks: AsyncIterator[bytes]) -> int:
        normal, data, size = checked_path(path), bytearray(), 0
        async for chunk in chunks:
            # An empty frame would end the file.
            if chunk:
                data += b"%08x" % len(chunk) + chunk
                size += len(chunk)
        frames = await (await self._wake()).files("write", {"path": normal}, bytes(data) + b"00000000")
        for _ in range(2):
            raise_problem(json.loads(next(frames)), path)
        return size
