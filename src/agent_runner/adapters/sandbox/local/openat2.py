"""Opening files the agent may have prepared traps around: links, devices, pipes, swapped directories.

The kernel resolves the whole path inside one directory (`openat2`, Linux 5.6 or later), so there is
no moment between a check and a use.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_SYS_OPENAT2 = 437
"""The same on every architecture."""
_IN_ROOT, _NO_MAGICLINKS = 0x10, 0x02
_ATTEMPTS = 128

_libc = ctypes.CDLL(None, use_errno=True)


def open_beneath(directory: int, path: str, flags: int, mode: int = 0) -> int:
    """Open `path` as if the directory were `/`: absolute links and `..` stay inside.

    Never opens the links of `/proc`, never blocks on a pipe.

    Raises:
        OSError: as from `os.open`.
    """
    flags |= os.O_CLOEXEC
    if not flags & os.O_PATH:
        flags |= os.O_NONBLOCK | os.O_NOCTTY
    how = struct.pack("<QQQ", flags, mode, _IN_ROOT | _NO_MAGICLINKS)
    for _ in range(_ATTEMPTS):
        descriptor: int = _libc.syscall(_SYS_OPENAT2, directory, os.fsencode(path), how, len(how))
        if descriptor >= 0:
            return descriptor
        # EAGAIN: something was renamed during a walk over `..`; the kernel asks to try again.
        if (number := ctypes.get_errno()) not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number), path)


def available() -> bool:
    """Whether this kernel has `openat2`, and nothing forbids it."""
    try:
        os.close(open_beneath(-100, ".", os.O_PATH))
    except OSError:
        return False
    return True
