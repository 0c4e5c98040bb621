"""Locks between processes of one host: the kernel's, which go with the process that holds them."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_FIRST_WAIT, _LONGEST_WAIT = 0.005, 0.1


class SharedLocks:
    """Locks this process shares with others, one descriptor each however many tasks hold them."""

    def __init__(self) -> None:
        self._taking = asyncio.Lock()
        self._held: dict[Path, tuple[int, list[None]]] = {}

    @asynccontextmanager
    async def hold(self, path: Path) -> AsyncIterator[None]:
        async with self._taking:
            if path not in self._held:
                self._held[path] = (await _take(path, exclusive=False), [])
            descriptor, holders = self._held[path]
            holders.append(None)
        try:
            yield
        finally:
            holders.pop()
            if not holders:
                del self._held[path]
                os.close(descriptor)


@asynccontextmanager
async def alone(path: Path) -> AsyncIterator[None]:
    """Hold a lock nobody else holds meanwhile."""
    descriptor = await _take(path, exclusive=True)
    try:
        yield
    finally:
        os.close(descriptor)


def try_alone(path: Path) -> int | None:
    """A descriptor that holds the lock alone until it is closed; None when somebody has it."""
    descriptor = _open(path)
    if _taken(descriptor, exclusive=True):
        return descriptor
    os.close(descriptor)
    return None


async def _take(path: Path, *, exclusive: bool) -> int:
    """Wait for a lock without a thread: a thread per waiter could take up those the holder needs."""
    descriptor, wait = _open(path), _FIRST_WAIT
    try:
        while not _taken(descriptor, exclusive=exclusive):
            await asyncio.sleep(wait)
            wait = min(wait * 2, _LONGEST_WAIT)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _taken(descriptor: int, *, exclusive: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
