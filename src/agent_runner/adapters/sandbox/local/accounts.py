"""A user id per session, where the worker is root.

Bubblewrap as the real user id 0 leaves the kernel's settings writable from inside; and with an id of
its own a session's limits are its own, and its files closed to every other session's processes.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from agent_runner.errors import SandboxRefusedError

_HIGH = (200_000, 265_000)
_LOW = (20_000, 60_000)
"""For containers, where most often no more than 65,536 ids are mapped."""


class Accounts:
    """Hands out user ids; a link per id taken, below `root`, keeps workers on one host apart."""

    def __init__(self, root: Path, *, separate: bool = True) -> None:
        self._directory = root / "uids"
        self.separate = separate and os.geteuid() == 0
        """Whether sessions have ids of their own; otherwise everything runs as the worker's user."""

    def claim(self, session_id: str) -> int:
        """The session's id, the same each time until it is released.

        Raises:
            SandboxRefusedError: all are taken.
        """
        if not self.separate:
            return os.geteuid()
        self._directory.mkdir(mode=0o700, exist_ok=True)
        first, last = _range()
        count = last - first
        # Roots on one host start at different places, for limits on processes are counted per id.
        seed = hashlib.sha256(f"{self._directory}\n{session_id}".encode()).digest()
        start = int.from_bytes(seed[:4]) % count
        for step in range(count):
            uid = first + (start + step) % count
            if self._take(uid, session_id):
                return uid
        raise SandboxRefusedError(f"All {count} user ids for sessions are taken. Delete sessions.")

    def release(self, session_id: str, uid: int) -> None:
        link = self._directory / str(uid)
        with suppress(OSError):
            if str(link.readlink()) == session_id:
                link.unlink()

    def sweep(self, sessions: Path, limit: float) -> None:
        """Give back ids taken before `limit` (seconds since the epoch) by sessions which are no more."""
        for link in self._directory.glob("*") if self.separate else ():
            with suppress(OSError):
                if link.lstat().st_mtime < limit and not (sessions / link.readlink()).exists():
                    link.unlink()

    def _take(self, uid: int, session_id: str) -> bool:
        link = self._directory / str(uid)
        try:
            link.symlink_to(session_id)
        except FileExistsError:
            try:
                return str(link.readlink()) == session_id
            except FileNotFoundError:
                return self._take(uid, session_id)
        return True


def _range() -> tuple[int, int]:
    mapped = 0
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/uid_map").read_text().splitlines():
            inside, _, count = (int(part) for part in line.split())
            if inside == 0:
                mapped = count
    return _HIGH if mapped > _HIGH[1] else _LOW
