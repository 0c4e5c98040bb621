"""A session's files for people: listed, read and written without a sandbox running."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from agent_runner.adapters.sandbox.local.files import SessionFiles
from agent_runner.adapters.sandbox.threads import in_thread
from agent_runner.errors import FailedPreconditionError, InvalidRequestError, NotFoundError
from agent_runner.ports.sandboxes import FileEntry


class LocalWorkspace:
    """The port's `Workspace` over a session's directory."""

    def __init__(self, files: SessionFiles, session_id: str) -> None:
        self._files = files
        self._session_id = session_id

    async def list(self, path: str = "/workspace") -> Sequence[FileEntry]:
        with _told_plainly(path):
            return await asyncio.to_thread(self._files.entries, path)

    async def read(self, path: str, *, chunk_size: int = 1 << 20) -> AsyncIterator[bytes]:
        with _told_plainly(path):
            opened = self._files.open_file(path)
            descriptor = await _entered(opened)
        try:
            # As long as it is now: a file the agent keeps writing to would have no end.
            left = os.fstat(descriptor).st_size
            while left > 0:
                data = await in_thread(os.read, descriptor, min(chunk_size, left))
                if not data:
                    return
                left -= len(data)
                yield data
        finally:
            opened.__exit__(None, None, None)

    async def write(self, path: str, chunks: AsyncIterator[bytes]) -> int:
        size = 0
        replacing = self._files.replacing(path)
        with _told_plainly(path):
            descriptor = await _entered(replacing)
        try:
            async for chunk in chunks:
                with _told_plainly(path):
                    await in_thread(_write_all, descriptor, chunk)
                size += len(chunk)
        except BaseException:
            # What the sender's side raises is the caller's own, and passes unchanged.
            replacing.__exit__(*sys.exc_info())
            raise
        with _told_plainly(path):
            await in_thread(replacing.__exit__, None, None, None)
        return size


async def _entered(files: AbstractContextManager[int]) -> int:
    """Enter on a thread; left again where the caller is cancelled meanwhile."""
    entering = asyncio.get_running_loop().run_in_executor(None, files.__enter__)
    try:
        return await asyncio.shield(entering)
    except asyncio.CancelledError:
        await asyncio.wait([entering])
        if entering.exception() is None:
            await in_thread(files.__exit__, *sys.exc_info())
        raise


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


@contextmanager
def _told_plainly(path: str) -> Iterator[None]:
    """Turn the system's errors into ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError("File", path) from error
    except ValueError as error:
        raise InvalidRequestError.of("path", f"{path[:200]!r} is not a path.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FailedPreconditionError("There is no space left for the session's files.") from error
        raise InvalidRequestError.of(
            "path", f"{path[:200]!r}: {_REASONS.get(error.errno or 0, error.strerror)}."
        ) from error


_REASONS = {
    errno.EACCES: "is outside of the session's files",
    errno.EXDEV: "leads out of the session's files",
    errno.ELOOP: "is a loop of links",
    errno.EISDIR: "is a directory",
    errno.ENOTDIR: "is no directory",
    errno.EINVAL: "is no regular file",
}
