"""One SQLite file: a writer thread with group commit, and reader threads.

SQLite allows one writer, and a durable commit costs one fsync. So every write of the process goes
through one thread, which takes all that wait at that moment into one transaction: 50 writers pay for
one fsync together. Each caller's statements stand in a savepoint of their own, so that the conflict of
one does not undo the others, and each learns its result only after the commit.

Reads run on threads with connections of their own; in WAL mode they neither wait for the writer nor
hold it up, and a read begun after a write was acknowledged sees it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

import apsw
import structlog

from agent_runner.adapters.store.schema import MIGRATIONS
from agent_runner.errors import SettingsError, UnavailableError

log = structlog.get_logger(__name__)

T = TypeVar("T")
Job = Callable[[apsw.Connection], T]

BUSY_TIMEOUT_MS = 5_000
"""How long a statement waits for another process that holds the file."""

MAX_BATCH = 512
"""The most writes in one transaction; bounds how long the first of them waits."""

SLOW_COMMIT_SECONDS = 1.0
"""From here on a commit is worth a line in the log: somebody waited for the disk."""

WAL_SIZE_LIMIT = 64 << 20
"""Bytes to which the write-ahead log is cut back after a checkpoint."""

_AWAY = (apsw.FullError, apsw.IOError, apsw.BusyError, apsw.ReadOnlyError, apsw.CantOpenError)
"""What SQLite says when the disk or another process is in the way, rather than the statement."""


class _Request(Generic[T]):
    """A job on its way through a thread, and who waits for it."""

    __slots__ = ("error", "future", "job", "loop", "result")

    def __init__(
        self,
        job: Job[T],
        future: asyncio.Future[T] | concurrent.futures.Future[T],
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self.job = job
        self.future = future
        self.loop = loop
        self.result: Any = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        """Tell the waiter, who may have gone away."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)
        elif isinstance(self.error, _AWAY):
            unavailable = UnavailableError(f"The database cannot be used right now: {self.error}. Try again.")
            unavailable.__cause__ = self.error
            self.future.set_exception(unavailable)
        else:
            self.future.set_exception(self.error)


_Queue = queue.SimpleQueue[_Request[Any] | None]


class SqliteDatabase:
    """A SQLite file that is opened, migrated, written and read.

    Args:
        path: the file; its folder is made when missing. Mode 0600.
        migrations: SQL scripts; the first makes version 1 of the schema, and so on. Default: the
            schema of resources and event logs.
        synchronous: `FULL` makes an acknowledged write survive a power cut, `NORMAL` only a crash of
            the process.
        readers: how many reads may run at once.
        on_commit: hears of every transaction, on the writer thread: how many writes, how many seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        migrations: Sequence[str] = MIGRATIONS,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        readers: int = 2,
        on_commit: Callable[[int, float], None] = lambda writes, seconds: None,
    ) -> None:
        self.path = path
        self._migrations = migrations
        self._synchronous = synchronous
        self._reader_count = readers
        self._on_commit = on_commit
        self._writes: _Queue = queue.SimpleQueue()
        self._reads: _Queue = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        # Guards `_open` together with the queues: nothing may be queued behind the end marks.
        self._gate = threading.Lock()
        self._open = False
        self._here: apsw.Connection | None = None

    async def open(self) -> None:
        """Open the file, bring its schema up to date and start the threads.

        Raises:
            SettingsError: the file cannot be opened or written, is no database, or was written by a
                newer release.
        """
        writer, *readers, self._here = await asyncio.to_thread(self._connect)
        # It must not wait: the event loop would wait with it.
        self._here.set_busy_timeout(0)
        self._start(self._write_until_closed, writer, "sqlite-writer")
        for reader in readers:
            self._start(self._read_until_closed, reader, "sqlite-reader")
        self._open = True

    async def aclose(self) -> None:
        """Finish what was asked for, then close the file. May be called twice."""
        with self._gate:
            was_open, self._open = self._open, False
            if was_open:
                self._writes.put(None)
                for _ in range(self._reader_count):
                    self._reads.put(None)
        if self._here is not None:
            self._here.close()
            self._here = None
        threads, self._threads = self._threads, []
        for thread in threads:
            await asyncio.to_thread(thread.join)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def write(self, job: Job[T]) -> T:
        """Run `job` inside a transaction and return its result once it is committed.

        What the job raises undoes the job alone. A caller cancelled while it waits does not stop the
        job: it is written whole or not at all.

        Raises:
            UnavailableError: the disk is full or failed, another process holds the file, or the
                database is closed; nothing was written.
        """
        return await self._ask(self._writes, job)

    async def read(self, job: Job[T]) -> T:
        """Run `job`, which may only read, on a thread of its own."""
        return await self._ask(self._reads, job)

    async def look_up(self, job: Job[T]) -> T:
        """Run `job`, a read of a few rows by key, right here on the event loop.

        Such a read takes 5 to 20 microseconds, since no lock is waited for and its pages are in
        memory; the way to a thread and back takes five times that, and tens of milliseconds when the
        loop is so busy that the thread hardly gets the interpreter's lock.
        """
        if not self._open or self._here is None:
            raise UnavailableError(f"The database {self.path.name} is closed.")
        try:
            return job(self._here)
        except apsw.BusyError:
            return await self.read(job)

    def write_blocking(self, job: Job[T]) -> T:
        """`write` for callers outside of an event loop."""
        return self._ask_blocking(self._writes, job)

    def read_blocking(self, job: Job[T]) -> T:
        """`read` for callers outside of an event loop."""
        return self._ask_blocking(self._reads, job)

    def _ask(self, requests: _Queue, job: Job[T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._submit(requests, _Request(job, future, loop))
        return future

    def _ask_blocking(self, requests: _Queue, job: Job[T]) -> T:
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._submit(requests, _Request(job, future, None))
        return future.result()

    def _submit(self, requests: _Queue, request: _Request[Any]) -> None:
        with self._gate:
            if not self._open:
                raise UnavailableError(f"The database {self.path.name} is closed.")
            requests.put(request)

    def _start(
        self, target: Callable[[apsw.Connection], None], connection: apsw.Connection, name: str
    ) -> None:
        # Daemons: a process that ends without aclose() must not hang; what it was not told is
        # written may be lost, what it was told is not.
        thread = threading.Thread(target=target, args=(connection,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _connect(self) -> list[apsw.Connection]:
        """The writer's connection, one per reader, and one for the event loop."""
        try:
            _make_private(self.path)
            writer = self._configured(apsw.Connection(str(self.path)))
            writer.pragma("journal_mode", "wal")
            writer.pragma("synchronous", self._synchronous)
            writer.pragma("journal_size_limit", WAL_SIZE_LIMIT)
            _migrate(writer, self._migrations, self.path)
            readers = [
                self._configured(apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY))
                for _ in range(self._reader_count + 1)
            ]
        except (OSError, apsw.Error) as error:
            raise SettingsError(
                f"The database {self.path} cannot be opened: {error}. "
                "Check the data folder and that it may be written."
            ) from error
        return [writer, *readers]

    @staticmethod
    def _configured(connection: apsw.Connection) -> apsw.Connection:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        connection.pragma("foreign_keys", True)
        connection.pragma("temp_store", "memory")
        return connection

    def _write_until_closed(self, connection: apsw.Connection) -> None:
        while (request := self._writes.get()) is not None:
            batch = [request]
            closing = _take_waiting(self._writes, batch)
            began = time.perf_counter()
            _commit(connection, batch)
            seconds = time.perf_counter() - began
            _deliver(batch)
            self._on_commit(len(batch), seconds)
            if seconds > SLOW_COMMIT_SECONDS:
                log.warning(
                    "commit was slow", file=self.path.name, writes=len(batch), seconds=round(seconds, 3)
                )
            if closing:
                break
        connection.close()

    def _read_until_closed(self, connection: apsw.Connection) -> None:
        while (request := self._reads.get()) is not None:
            _run(request, connection)
            _deliver([request])
        connection.close()


def _take_waiting(requests: _Queue, batch: list[_Request[Any]]) -> bool:
    """Move what waits into the batch; whether the end mark came up."""
    while len(batch) < MAX_BATCH:
        try:
            request = requests.get_nowait()
        except queue.Empty:
            return False
        if request is None:
            return True
        batch.append(request)
    return False


def _commit(connection: apsw.Connection, batch: Sequence[_Request[Any]]) -> None:
    """Run the batch as one transaction; when that fails as a whole, so does every request in it."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        for request in batch:
            _run_in_savepoint(request, connection)
        connection.execute("COMMIT")
    except apsw.Error as error:
        with contextlib.suppress(apsw.Error):
            connection.execute("ROLLBACK")
        for request in batch:
            request.result, request.error = None, error


def _run_in_savepoint(request: _Request[Any], connection: apsw.Connection) -> None:
    """Run one request of a batch so that its failure undoes itself alone.

    Raises:
        apsw.Error: the whole transaction is lost, as when the disk is full.
    """
    connection.execute("SAVEPOINT request")
    _run(request, connection)
    if request.error is not None:
        if isinstance(request.error, _AWAY) or not connection.in_transaction:
            raise request.error
        connection.execute("ROLLBACK TO request")
    connection.execute("RELEASE request")


def _run(request: _Request[Any], connection: apsw.Connection) -> None:
    try:
        request.result = request.job(connection)
    # The thread must outlive whatever a job raises; the waiter gets it.
    except BaseException as error:  # noqa: BLE001
        request.error = error


def _deliver(batch: Sequence[_Request[Any]]) -> None:
    """Hand out the results, waking each event loop once."""
    by_loop: dict[asyncio.AbstractEventLoop | None, list[_Request[Any]]] = {}
    for request in batch:
        by_loop.setdefault(request.loop, []).append(request)
    for loop, requests in by_loop.items():
        if loop is None:
            _settle(requests)
            continue
        try:
            loop.call_soon_threadsafe(_settle, requests)
        except RuntimeError:  # the loop was closed: nobody waits any more
            continue


def _settle(requests: Sequence[_Request[Any]]) -> None:
    for request in requests:
        request.settle()


def _make_private(path: Path) -> None:
    """Make the file readable by its owner alone; SQLite gives the files beside it the same mode."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != 0o600:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    # The name too must survive a power cut; SQLite sees to that only for files it makes itself.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _migrate(connection: apsw.Connection, migrations: Sequence[str], path: Path) -> None:
    """Bring the schema to the newest version, in one transaction.

    Raises:
        SettingsError: the file's schema is newer than this release knows.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = connection.pragma("user_version")
        if version > len(migrations):
            raise SettingsError(
                f"The database {path} has schema version {version}; this release knows up to "
                f"{len(migrations)}. Use the release that wrote it, or a newer one."
            )
        for script in migrations[version:]:
            connection.execute(script)
        connection.pragma("user_version", len(migrations))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk ends it already
            connection.execute("ROLLBACK")
        connection.close()
        raise
