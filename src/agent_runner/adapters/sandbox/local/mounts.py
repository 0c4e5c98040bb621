"""A private view of the file system in which session users can reach the sandboxes' root.

A worker that is root may keep its state below a directory closed to everybody else, such as `/root`.
Bubblewrap, running as the session's user, could not go through it. So a thread makes a mount namespace
of its own, covers the closed directory with an empty one and binds what is needed back into its place:
the paths stay the same, the host sees nothing of it, and when the worker ends it is gone.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


def closed_ancestor(path: Path) -> Path | None:
    """The first directory on the way to `path` which others may not go through."""
    for directory in reversed(path.parents):
        if directory.exists() and not directory.stat().st_mode & stat.S_IXOTH:
            return directory
    return None


def open_view(paths: Sequence[Path]) -> int | None:
    """A descriptor of a mount namespace where all paths can be reached; None when they can already.

    Raises:
        OSError: this process may not make mount namespaces.
    """
    closed = [ancestor for path in paths if (ancestor := closed_ancestor(path))]
    if not closed:
        return None
    # A namespace belongs to a thread, so this one must not be used for anything else again.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(_make_view, paths, closed).result()


def _make_view(paths: Sequence[Path], closed: Sequence[Path]) -> int:
    if _libc.unshare(_CLONE_NEWNS) != 0:
        raise _error("unshare")
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE, None)
    held = [os.open(path, os.O_PATH) for path in paths]
    try:
        for cover in sorted(set(closed)):
            _mount("tmpfs", str(cover), "tmpfs", 0, b"mode=755,size=1m")
        for path, descriptor in zip(paths, held, strict=True):
            _make_mount_point(path, is_directory=stat.S_ISDIR(os.fstat(descriptor).st_mode))
            _mount(f"/proc/self/fd/{descriptor}", str(path), None, _MS_BIND | _MS_REC, None)
    finally:
        for descriptor in held:
            os.close(descriptor)
    return os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)


def _make_mount_point(path: Path, *, is_directory: bool) -> None:
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir()
            parent.chmod(0o755)  # whatever the umask
    if not path.exists():
        path.mkdir() if is_directory else path.touch()


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: bytes | None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    if _libc.mount(*encoded, ctypes.c_ulong(flags), data) != 0:
        raise _error(target)


def _error(name: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), name)
