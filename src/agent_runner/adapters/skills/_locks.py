"""Locks between processes of one host: the kernel's, which go with the process that holds them."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_FIRST_WAIT, _LONGEST_WAIT = 0.005, 0.1


@asynccontextmanager
async def locked(path: Path, *, exclusive: bool) -> AsyncIterator[None]:
    """Hold a lock, shared or alone, waiting for it without a thread.

    A thread per waiter could take up all there are, those of the holder included.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        wait = _FIRST_WAIT
        while not _taken(descriptor, exclusive):
            await asyncio.sleep(wait)
            wait = min(wait * 2, _LONGEST_WAIT)
        yield
    finally:
        os.close(descriptor)


def try_alone(path: Path) -> int | None:
    """A descriptor that holds the lock alone until it is closed; None when somebody has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if _taken(descriptor, True):
        return descriptor
    os.close(descriptor)
    return None


def _taken(descriptor: int, exclusive: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
