"""A session's files for people, by a script inside its container, which is started for it if need be."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from agent_runner.adapters.sandbox.docker.sandbox import DockerSandbox
from agent_runner.adapters.sandbox.names import sandbox_path
from agent_runner.errors import FailedPreconditionError, InvalidRequestError, NotFoundError
from agent_runner.ports.sandboxes import FileEntry

_REASONS = {
    errno.EACCES: "is outside of the session's files",
    errno.ELOOP: "is a loop of links",
    errno.EISDIR: "is a directory",
    errno.ENOTDIR: "is no directory",
    errno.EINVAL: "is no regular file",
}


class DockerWorkspace:
    """The port's `Workspace` in a container."""

    def __init__(self, wake: Callable[[], Awaitable[DockerSandbox]]) -> None:
        """`wake` finds the session's container, or starts it."""
        self._wake = wake

    async def list(self, path: str = "/workspace") -> Sequence[FileEntry]:
        normal = _checked(path)
        async with (await self._wake()).files("list", {"path": normal}) as talk:
            _raise_problem(await talk.answer(), path)
            return [FileEntry(*entry) for entry in await talk.answer()]

    async def read(self, path: str, *, chunk_size: int = 1 << 20) -> AsyncIterator[bytes]:
        normal = _checked(path)
        async with (await self._wake()).files("read", {"path": normal}) as talk:
            _raise_problem(await talk.answer(), path)
            while frame := await talk.frame():
                for start in range(0, len(frame), chunk_size):
                    yield frame[start : start + chunk_size]

    async def write(self, path: str, chunks: AsyncIterator[bytes]) -> int:
        normal, size = _checked(path), 0
        async with (await self._wake()).files("write", {"path": normal}) as talk:
            _raise_problem(await talk.answer(), path)
            async for chunk in chunks:
                # An empty frame would end the file.
                if chunk:
                    await talk.send(b"%08x" % len(chunk) + chunk)
                    size += len(chunk)
            await talk.send(b"00000000")
            _raise_problem(await talk.answer(), path)
        return size


def _checked(path: str) -> str:
    try:
        return sandbox_path(path)
    except ValueError as error:
        raise InvalidRequestError.of("path", f"{path[:200]!r} is not a path.") from error


def _raise_problem(answer: dict[str, Any], path: str) -> None:
    if "problem" not in answer:
        return
    number = answer["errno"]
    if number == errno.ENOENT:
        raise NotFoundError("File", path)
    if number in (errno.ENOSPC, errno.EDQUOT):
        raise FailedPreconditionError("There is no space left for the session's files.")
    reason = _REASONS.get(number, "cannot be used")
    raise InvalidRequestError.of("path", f"{path[:200]!r} {reason}.")
