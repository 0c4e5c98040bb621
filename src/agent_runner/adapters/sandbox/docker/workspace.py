"""A session's files for people, by a script inside its container, which is started for it if need be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from agent_runner.adapters.sandbox.docker.sandbox import DockerSandbox
from agent_runner.adapters.sandbox.problems import checked_path, raise_problem
from agent_runner.ports.sandboxes import FileEntry


class DockerWorkspace:
    """The port's `Workspace` in a container."""

    def __init__(self, wake: Callable[[], Awaitable[DockerSandbox]]) -> None:
        """`wake` finds the session's container, or starts it."""
        self._wake = wake

    async def list(self, path: str = "/workspace") -> Sequence[FileEntry]:
        normal = checked_path(path)
        async with (await self._wake()).files("list", {"path": normal}) as talk:
            raise_problem(await talk.answer(), path)
            return [FileEntry(*entry) for entry in await talk.answer()]

    async def read(self, path: str, *, chunk_size: int = 1 << 20) -> AsyncIterator[bytes]:
        normal = checked_path(path)
        async with (await self._wake()).files("read", {"path": normal}) as talk:
            raise_problem(await talk.answer(), path)
            while frame := await talk.frame():
                for start in range(0, len(frame), chunk_size):
                    yield frame[start : start + chunk_size]

    async def write(self, path: str, chunks: AsyncIterator[bytes]) -> int:
        normal, size = checked_path(path), 0
        async with (await self._wake()).files("write", {"path": normal}) as talk:
            raise_problem(await talk.answer(), path)
            async for chunk in chunks:
                # An empty frame would end the file.
                if chunk:
                    await talk.send(b"%08x" % len(chunk) + chunk)
                    size += len(chunk)
            await talk.send(b"00000000")
            raise_problem(await talk.answer(), path)
        return size
