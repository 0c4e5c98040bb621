"""What every EventLog keeps."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from contract.servers import mongo_database

from agent_runner.adapters.store.memory import MemoryEventLog
from agent_runner.adapters.store.sqlite import SqliteDatabase, SqliteEventLog
from agent_runner.errors import ConflictError, NotFoundError
from agent_runner.ports.stores import EventLog, LogHead


@asynccontextmanager
async def memory(request: pytest.FixtureRequest) -> AsyncIterator[EventLog]:
    yield MemoryEventLog()


@asynccontextmanager
async def sqlite(request: pytest.FixtureRequest) -> AsyncIterator[EventLog]:
    folder: Path = request.getfixturevalue("tmp_path")
    async with SqliteDatabase(folder / "store.db") as database:
        yield SqliteEventLog(database)


@asynccontextmanager
async def mongo(request: pytest.FixtureRequest) -> AsyncIterator[EventLog]:
    url = request.getfixturevalue("mongo_url")
    from agent_runner.adapters.store.mongo import MongoEventLog

    async with mongo_database(f"{url}/test_{uuid.uuid4().hex}") as database:
        yield MongoEventLog(database)


LOGS: dict[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[EventLog]]] = {
    "memory": memory,
    "sqlite": sqlite,
    "mongo": mongo,
}


@pytest.fixture(params=LOGS)
async def log(request: pytest.FixtureRequest) -> AsyncIterator[EventLog]:
    async with LOGS[request.param](request) as opened:
        yield opened


def batch(first: int, count: int) -> list[bytes]:
    return [f"event {seq}".encode() for seq in range(first, first + count)]


async def fill(log: EventLog, execution_id: str, count: int) -> LogHead:
    head = LogHead(last_seq=count, attempt=1, position=count, snapshot_seq=count, snapshot=b"status")
    await log.append(execution_id, batch(1, count), expected_seq=0, head=head)
    return head


async def test_a_log_without_events_has_an_empty_head(log: EventLog) -> None:
    assert await log.head("ex-1") == LogHead()
    assert list(await log.read("ex-1")) == []


async def test_events_and_head_are_read_back(log: EventLog) -> None:
    head = await fill(log, "ex-1", 3)

    assert await log.head("ex-1") == head
    assert list(await log.read("ex-1")) == [(1, b"event 1"), (2, b"event 2"), (3, b"event 3")]


async def test_appends_go_on_where_the_last_ended(log: EventLog) -> None:
    await fill(log, "ex-1", 3)
    head = LogHead(last_seq=5, attempt=2, position=2, snapshot_seq=3, snapshot=b"status")
    await log.append("ex-1", batch(4, 2), expected_seq=3, head=head)

    assert await log.head("ex-1") == head
    assert [seq for seq, _ in await log.read("ex-1")] == [1, 2, 3, 4, 5]


async def test_a_head_moves_without_events_too(log: EventLog) -> None:
    await fill(log, "ex-1", 3)
    head = LogHead(last_seq=3, attempt=7, position=0, snapshot_seq=3, snapshot=b"another", token=b"\x00hash")
    await log.append("ex-1", [], expected_seq=3, head=head)
    first = LogHead(attempt=1)
    await log.append("ex-2", [], expected_seq=0, head=first)

    assert await log.head("ex-1") == head
    assert await log.head("ex-2") == first
    await fill(log, "ex-2", 2)
    assert len(await log.read("ex-2")) == 2


@pytest.mark.parametrize("expected_seq", [0, 2, 4])
async def test_an_append_elsewhere_than_at_the_end_changes_nothing(log: EventLog, expected_seq: int) -> None:
    head = await fill(log, "ex-1", 3)

    with pytest.raises(ConflictError, match="ex-1"):
        await log.append("ex-1", [b"x"], expected_seq=expected_seq, head=LogHead(last_seq=expected_seq + 1))
    assert await log.head("ex-1") == head
    assert len(await log.read("ex-1")) == 3


async def test_an_append_to_an_empty_log_starts_at_one(log: EventLog) -> None:
    with pytest.raises(ConflictError):
        await log.append("ex-1", [b"x"], expected_seq=4, head=LogHead(last_seq=5))
    assert await log.head("ex-1") == LogHead()


async def test_a_head_that_does_not_fit_its_events_is_a_mistake(log: EventLog) -> None:
    with pytest.raises(ValueError, match="do not end at 9"):
        await log.append("ex-1", [b"x"], expected_seq=0, head=LogHead(last_seq=9))


async def test_reads_are_paged(log: EventLog) -> None:
    await fill(log, "ex-1", 25)

    seen: list[int] = []
    while page := await log.read("ex-1", after_seq=seen[-1] if seen else 0, limit=10):
        assert len(page) <= 10
        seen += [seq for seq, _ in page]
    assert seen == list(range(1, 26))


async def test_logs_do_not_mix(log: EventLog) -> None:
    for number in range(5):
        await fill(log, f"ex-{number}", number + 1)

    for number in range(5):
        assert [seq for seq, _ in await log.read(f"ex-{number}")] == list(range(1, number + 2))


async def test_of_appends_at_the_same_place_one_wins(log: EventLog) -> None:
    async def append(text: bytes) -> bool:
        try:
            await log.append("ex-1", [text], expected_seq=0, head=LogHead(last_seq=1, snapshot=text))
        except ConflictError:
            return False
        return True

    texts = [str(number).encode() for number in range(20)]
    results = await asyncio.gather(*map(append, texts))
    won = [text for text, result in zip(texts, results, strict=True) if result]

    assert len(won) == 1
    assert list(await log.read("ex-1")) == [(1, won[0])]
    assert (await log.head("ex-1")).snapshot == won[0]


async def test_many_logs_grow_at_once(log: EventLog) -> None:
    async def write(execution_id: str) -> None:
        for seq in range(0, 60, 3):
            head = LogHead(last_seq=seq + 3, attempt=1, position=seq + 3, snapshot=execution_id.encode())
            await log.append(execution_id, batch(seq + 1, 3), expected_seq=seq, head=head)

    await asyncio.gather(*(write(f"ex-{number}") for number in range(20)))
    for number in range(20):
        events = await log.read(f"ex-{number}")
        assert list(events) == list(enumerate(batch(1, 60), start=1))


async def test_compacted_events_take_the_place_of_all(log: EventLog) -> None:
    head = await fill(log, "ex-1", 10)
    await fill(log, "ex-2", 3)
    await log.replace("ex-1", [(1, b"one"), (7, b"two to seven"), (10, b"the rest")])

    assert list(await log.read("ex-1")) == [(1, b"one"), (7, b"two to seven"), (10, b"the rest")]
    assert list(await log.read("ex-1", after_seq=3, limit=1)) == [(7, b"two to seven")]
    assert await log.head("ex-1") == head
    assert len(await log.read("ex-2")) == 3


async def test_a_log_that_went_on_since_it_was_read_is_not_compacted(log: EventLog) -> None:
    await fill(log, "ex-1", 10)
    compacted = [(1, b"one"), (10, b"the rest")]
    await log.append("ex-1", [b"late"], expected_seq=10, head=LogHead(last_seq=11))

    with pytest.raises(ConflictError, match="ex-1"):
        await log.replace("ex-1", compacted)
    assert len(await log.read("ex-1")) == 11


@pytest.mark.parametrize("seqs", [[2, 1, 3], [0, 3], [1, 1, 3]])
async def test_compacted_events_must_be_in_order(log: EventLog, seqs: list[int]) -> None:
    await fill(log, "ex-1", 3)
    with pytest.raises(ValueError, match="must rise"):
        await log.replace("ex-1", [(seq, b"x") for seq in seqs])
    assert len(await log.read("ex-1")) == 3


async def test_a_compacted_log_goes_on(log: EventLog) -> None:
    await fill(log, "ex-1", 10)
    await log.replace("ex-1", [(10, b"all")])
    await log.append("ex-1", [b"eleven"], expected_seq=10, head=LogHead(last_seq=11))

    assert list(await log.read("ex-1")) == [(10, b"all"), (11, b"eleven")]


async def test_a_long_log_is_deleted_whole(log: EventLog) -> None:
    await fill(log, "ex-1", 7_000)
    await fill(log, "ex-2", 5)
    await log.delete("ex-1")

    assert await log.read("ex-1") == []
    assert len(await log.read("ex-2")) == 5


async def test_a_log_that_is_not_there_cannot_be_compacted(log: EventLog) -> None:
    with pytest.raises(NotFoundError, match="ex-1"):
        await log.replace("ex-1", [(1, b"one")])


async def test_a_deleted_log_begins_anew(log: EventLog) -> None:
    await fill(log, "ex-1", 3)
    await fill(log, "ex-2", 2)
    await log.delete("ex-1")
    await log.delete("ex-1")

    assert await log.head("ex-1") == LogHead()
    assert list(await log.read("ex-1")) == []
    await fill(log, "ex-3", 4)
    await fill(log, "ex-1", 1)
    assert [len(await log.read(f"ex-{number}")) for number in (1, 2, 3)] == [1, 2, 4]


async def test_events_of_any_content_and_size_are_kept(log: EventLog) -> None:
    events = [b"", bytes(range(256)), b"x" * 3_000_000]
    await log.append("ex-1", events, expected_seq=0, head=LogHead(last_seq=3))

    assert [event for _, event in await log.read("ex-1")] == events


async def test_reads_end_where_they_have_bytes_enough(log: EventLog) -> None:
    events = [bytes([number]) * size for number, size in enumerate((400, 700, 10, 2_000, 5))]
    await log.append("ex-1", events, expected_seq=0, head=LogHead(5))

    pages: list[list[int]] = []
    while page := await log.read("ex-1", after_seq=pages[-1][-1] if pages else 0, most_bytes=1_000):
        pages.append([seq for seq, _ in page])
    assert pages == [[1, 2], [3, 4], [5]]
    assert len(await log.read("ex-1", limit=1, most_bytes=1_000)) == 1


async def test_a_snapshot_of_any_size_is_kept(log: EventLog) -> None:
    first, second = b"a" * (9 << 20) + b"b" * (9 << 20), b"c" * (17 << 20)
    for seq, snapshot in enumerate((first, second, b"small", second, first)):
        head = LogHead(seq + 1, snapshot_seq=seq + 1, snapshot=snapshot)
        await log.append("ex-1", [b"event"], expected_seq=seq, head=head)
        assert await log.head("ex-1") == head
    with pytest.raises(ConflictError):
        await log.append("ex-1", [b"late"], expected_seq=3, head=LogHead(4, snapshot=first))
    assert (await log.head("ex-1")).snapshot == first

    await log.delete("ex-1")
    assert await log.head("ex-1") == LogHead()
