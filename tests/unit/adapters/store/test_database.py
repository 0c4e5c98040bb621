"""The SQLite database: group commit, durability, opening and closing."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apsw
import pytest

from agent_runner.adapters.store.database import SqliteDatabase
from agent_runner.adapters.store.schema import MIGRATIONS
from agent_runner.adapters.store.sqlite import SqliteEventLog, SqliteResourceStore
from agent_runner.errors import SettingsError, UnavailableError
from agent_runner.ports.stores import LogHead, ResourceKey, StoredResource

TABLE = ("CREATE TABLE things (name TEXT PRIMARY KEY, value BLOB) STRICT",)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    async with SqliteDatabase(tmp_path / "test.db", migrations=TABLE) as opened:
        yield opened


def add(name: str, value: bytes = b"") -> Callable[[apsw.Connection], str]:
    def job(connection: apsw.Connection) -> str:
        connection.execute("INSERT INTO things VALUES (?, ?)", (name, value))
        return name

    return job


def names(connection: apsw.Connection) -> list[Any]:
    return [name for (name,) in connection.execute("SELECT name FROM things ORDER BY name")]


class Gate:
    """A job that holds the writer thread until it is opened, so that a batch builds up behind it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.reached = asyncio.Event()
        self.opened = threading.Event()

    def __call__(self, connection: apsw.Connection) -> None:
        self._loop.call_soon_threadsafe(self.reached.set)
        assert self.opened.wait(300)


async def behind_a_gate(database: SqliteDatabase, jobs: list[Callable[[apsw.Connection], Any]]) -> list[Any]:
    """Results of jobs that are committed as one batch."""
    gate = Gate(asyncio.get_running_loop())
    first = asyncio.ensure_future(database.write(gate))
    await gate.reached.wait()
    waiting = [asyncio.ensure_future(database.write(job)) for job in jobs]
    await asyncio.sleep(0)
    gate.opened.set()
    await first
    return await asyncio.gather(*waiting, return_exceptions=True)


async def test_writes_that_wait_are_committed_together(database: SqliteDatabase) -> None:
    def transaction(connection: apsw.Connection) -> Any:
        connection.execute("INSERT INTO things VALUES (hex(randomblob(8)), NULL)")
        return connection.pragma("data_version"), connection.in_transaction, connection.total_changes()

    results = await behind_a_gate(database, [transaction] * 20)
    assert [changes - results[0][2] for _, _, changes in results] == list(range(20))
    assert all(inside for _, inside, _ in results)


async def test_the_failure_of_one_undoes_that_one_alone(database: SqliteDatabase) -> None:
    def half(connection: apsw.Connection) -> None:
        add("half")(connection)
        raise RuntimeError("changed my mind")

    results = await behind_a_gate(database, [add("a"), half, add("b"), add("a"), add("c")])

    assert results[0::2] == ["a", "b", "c"]
    assert isinstance(results[1], RuntimeError)
    assert isinstance(results[3], apsw.ConstraintError)
    assert await database.read(names) == ["a", "b", "c"]


async def test_a_read_after_an_acknowledged_write_sees_it(database: SqliteDatabase) -> None:
    for number in range(100):
        await database.write(add(f"{number:03}"))
        assert len(await database.read(names)) == number + 1


async def test_a_caller_cancelled_while_waiting_leaves_all_whole(database: SqliteDatabase) -> None:
    gate = Gate(asyncio.get_running_loop())
    first = asyncio.ensure_future(database.write(gate))
    await gate.reached.wait()
    cancelled = asyncio.ensure_future(database.write(add("cancelled")))
    kept = asyncio.ensure_future(database.write(add("kept")))
    await asyncio.sleep(0)
    cancelled.cancel()
    gate.opened.set()
    await first

    assert await kept == "kept"
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert await database.read(names) == ["cancelled", "kept"]


async def test_closing_finishes_what_was_asked_for(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "test.db", migrations=TABLE)
    await database.open()
    waiting = [asyncio.ensure_future(database.write(add(f"{number:04}"))) for number in range(1500)]
    await asyncio.sleep(0)
    await database.aclose()
    await database.aclose()

    assert len(await asyncio.gather(*waiting)) == 1500
    with pytest.raises(UnavailableError, match=r"test\.db is closed"):
        await database.write(add("late"))
    async with SqliteDatabase(tmp_path / "test.db", migrations=TABLE) as again:
        assert len(await again.read(names)) == 1500


async def test_other_threads_may_read_and_write_without_a_loop(database: SqliteDatabase) -> None:
    def work(number: int) -> int:
        database.write_blocking(add(f"{number:02}"))
        return len(database.read_blocking(names))

    with ThreadPoolExecutor(8) as threads:
        loop = asyncio.get_running_loop()
        counts = await asyncio.gather(*(loop.run_in_executor(threads, work, n) for n in range(40)))
    assert max(counts) == 40


async def test_what_keeps_a_file_from_being_opened_is_told_where_its_transaction_has_gone_too(
    tmp_path: Path,
) -> None:
    ends = (*TABLE, "ROLLBACK; INSERT INTO elsewhere VALUES (1)")  # as a disk that is full

    with pytest.raises(SettingsError, match="no such table: elsewhere"):
        await SqliteDatabase(tmp_path / "test.db", migrations=ends).open()


async def test_two_processes_may_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    async with SqliteDatabase(path, migrations=TABLE) as one, SqliteDatabase(path, migrations=TABLE) as two:
        await asyncio.gather(
            *(
                database.write(add(f"{name}{n}"))
                for n in range(100)
                for name, database in (("a", one), ("b", two))
            )
        )
        assert len(await one.read(names)) == 200


async def test_a_full_disk_is_said_and_passes(database: SqliteDatabase) -> None:
    pages = await database.write(lambda connection: connection.pragma("page_count"))
    await database.write(lambda connection: connection.pragma("max_page_count", pages + 8))
    results = await behind_a_gate(database, [add("small"), add("large", b"x" * 1_000_000), add("other")])

    assert [type(result) for result in results] == [UnavailableError] * 3
    assert all(error.retryable for error in results)
    assert await database.read(names) == []
    await database.write(lambda connection: connection.pragma("max_page_count", 1 << 30))
    await database.write(add("large", b"x" * 1_000_000))
    assert await database.read(names) == ["large"]


async def test_readers_cannot_write(database: SqliteDatabase) -> None:
    with pytest.raises(UnavailableError, match="readonly"):
        await database.read(add("x"))


async def test_files_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "test.db"
    async with SqliteDatabase(path, migrations=TABLE) as database:
        await database.write(add("x"))
        modes = {file.name: oct(file.stat().st_mode & 0o777) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(["test.db", "test.db-wal", "test.db-shm"], "0o600")
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_a_schema_is_brought_up_to_date_once(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    async with SqliteDatabase(path, migrations=TABLE) as database:
        await database.write(add("old"))
    newer = (*TABLE, "ALTER TABLE things ADD COLUMN size INTEGER; UPDATE things SET size = 7;")
    for _ in range(2):
        async with SqliteDatabase(path, migrations=newer) as database:
            rows = await database.read(lambda c: c.execute("SELECT name, size FROM things").fetchall())
            assert rows == [("old", 7)]

    with pytest.raises(SettingsError, match="schema version 2; this release knows up to 1"):
        await SqliteDatabase(path, migrations=TABLE).open()


async def test_a_log_of_the_first_schema_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    old = "INSERT INTO logs VALUES (1, 'ex-1', 3, 1, 3, 0)"
    async with SqliteDatabase(path, migrations=MIGRATIONS[:1]) as database:
        await database.write(lambda connection: connection.execute(old))

    async with SqliteDatabase(path) as database:
        log = SqliteEventLog(database)
        assert await log.head("ex-1") == LogHead(last_seq=3, attempt=1, position=3)
        head = LogHead(last_seq=4, attempt=2, token=b"hash")
        await log.append("ex-1", [b"four"], expected_seq=3, head=head)
        assert await log.head("ex-1") == head


async def test_what_had_not_ended_under_the_second_schema_is_in_the_queue_of_its_session(
    tmp_path: Path,
) -> None:
    path = tmp_path / "test.db"
    rows = [
        ("agent_execution", "aex-1", {"session_id": "ses-1", "phase": "EXECUTION_COMPLETED", "log": "full"}),
        ("agent_execution", "aex-2", {"session_id": "ses-1", "phase": "EXECUTION_IN_PROGRESS"}),
        ("agent_execution", "aex-3", {"session_id": "ses-1", "phase": "EXECUTION_PENDING"}),
        ("agent_execution", "aex-4", {"phase": "EXECUTION_PENDING"}),
        ("session", "ses-1", {"phase": "EXECUTION_PENDING"}),
    ]
    async with SqliteDatabase(path, migrations=MIGRATIONS[:2]) as database:
        store = SqliteResourceStore(database)
        for kind, id_, fields in rows:
            await store.put(StoredResource(ResourceKey(kind, id_), "", "", b"", fields=fields), expected=0)

    async with SqliteDatabase(path) as database:
        store = SqliteResourceStore(database)
        for session, queue in (("ses-1", ["aex-2", "aex-3"]), ("", ["aex-4"])):
            listed = await store.list("agent_execution", fields={"open": session}, oldest_first=True)
            assert [resource.key.id for resource in listed] == queue
        assert (await store.get(ResourceKey("agent_execution", "aex-1"))).fields == rows[0][2]
        assert await store.values("agent_execution", "open") == ["", "ses-1"]
        assert await store.values("session", "open") == []


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    broken = (*TABLE, "CREATE TABLE more (a); CREATE TABLE things (b);")
    with pytest.raises(SettingsError, match="already exists"):
        await SqliteDatabase(path, migrations=broken).open()

    async with SqliteDatabase(path, migrations=TABLE) as database:
        assert await database.read(lambda c: c.pragma("user_version")) == 1


async def test_a_file_that_is_no_database_is_a_wrong_setting(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    path.write_bytes(b"this is a letter to my aunt" * 100)
    with pytest.raises(SettingsError, match="not a database"):
        await SqliteDatabase(path).open()
    assert path.read_bytes().startswith(b"this is a letter")


async def test_a_folder_in_the_way_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "test.db"):
        with pytest.raises(SettingsError, match="cannot be opened"):
            await SqliteDatabase(path).open()


WRITER = """
import asyncio, sys
from pathlib import Path
from agent_runner.adapters.store.sqlite import SqliteDatabase, SqliteEventLog, SqliteResourceStore
from agent_runner.ports.stores import LogHead, ResourceKey, StoredResource

async def write(name, store, log):
    version = 0
    while True:
        resource = StoredResource(ResourceKey("agent", name), "", name, str(version + 1).encode())
        version = await store.put(resource, expected=version)
        head = LogHead(last_seq=version, attempt=1, position=version, snapshot=b"x" * version)
        await log.append(name, [b"event"], expected_seq=version - 1, head=head)
        print(name, version, flush=True)

async def main():
    async with SqliteDatabase(Path(sys.argv[1])) as database:
        store, log = SqliteResourceStore(database), SqliteEventLog(database)
        await asyncio.gather(*(write(f"w{n}", store, log) for n in range(10)))

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [10, 200, 1500])
async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "store.db"
    acknowledged = await asyncio.to_thread(run_and_kill, path, lines)

    async with SqliteDatabase(path) as database:
        store, log = SqliteResourceStore(database), SqliteEventLog(database)
        for name, version in acknowledged.items():
            stored = await store.get(ResourceKey("agent", name))
            assert stored.version >= version
            assert stored.body == str(stored.version).encode()
            head = await log.head(name)
            events = await log.read(name, limit=100_000)
            assert head.last_seq >= version
            assert [seq for seq, _ in events] == list(range(1, head.last_seq + 1))
            assert head.snapshot == b"x" * head.last_seq


def run_and_kill(path: Path, lines: int) -> dict[str, int]:
    """Kill the writer in the middle of its work; the last version it acknowledged per name."""
    acknowledged: dict[str, int] = {}
    command = [sys.executable, "-c", WRITER, str(path)]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for _ in range(lines):
            name, version = process.stdout.readline().split()
            acknowledged[name] = int(version)
        process.send_signal(signal.SIGKILL)
        for line in process.stdout:
            if line.endswith("\n"):
                name, version = line.split()
                acknowledged[name] = int(version)
    return acknowledged


async def test_both_stores_live_in_one_file(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "store.db") as database:
        assert await SqliteResourceStore(database).list("agent") == []
        assert (await SqliteEventLog(database).head("ex-1")).last_seq == 0
