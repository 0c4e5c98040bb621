"""Who uses which sandbox, and when last: a small SQLite file beside the sandboxes.

Several workers on one host share it. It is no truth to be kept at any price: without it sandboxes look
unused, and the sessions' files are there all the same.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_SCHEMA = """\
CREATE TABLE IF NOT EXISTS leases (
    kind TEXT NOT NULL, session_id TEXT NOT NULL, owner TEXT NOT NULL,
    last_use REAL NOT NULL, expires REAL NOT NULL, PRIMARY KEY (kind, session_id)
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Lease:
    """One sandbox in use.

    Attributes:
        owner: the worker that used it last.
        last_use: seconds since the epoch.
        expires: from then on, without another use, nobody holds it.
    """

    kind: str
    session_id: str
    owner: str
    last_use: float
    expires: float

    def expired(self) -> bool:
        return self.expires <= time.time()


class Leases:
    """Leases in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # SQLite blocks, so it has a thread; one, for a connection belongs to the thread that made it.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="leases")
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    async def touch(self, kind: str, session_id: str, owner: str, ttl: timedelta) -> None:
        """Take the lease or prolong it; whoever used a sandbox last owns it."""
        now = time.time()
        values = (kind, session_id, owner, now, now + ttl.total_seconds())
        await self._call(
            partial(self._execute, "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?)", values)
        )

    async def drop(self, kind: str, session_id: str) -> None:
        values = (kind, session_id)
        await self._call(
            partial(self._execute, "DELETE FROM leases WHERE kind = ? AND session_id = ?", values)
        )

    async def all(self, kind: str) -> Sequence[Lease]:
        rows = await self._call(partial(self._execute, "SELECT * FROM leases WHERE kind = ?", (kind,)))
        return [Lease(*row) for row in rows]

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            await self._call(self._close)
            await asyncio.to_thread(self._thread.shutdown)

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _execute(self, statement: str, values: Sequence[object]) -> list[tuple[str, str, str, float, float]]:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, timeout=10, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            # A lease lost with the power matters to nobody.
            self._connection.execute("PRAGMA synchronous = OFF")
            self._connection.execute(_SCHEMA)
        return self._connection.execute(statement, values).fetchall()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
