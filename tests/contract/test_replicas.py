"""What the adapters for several replicas keep between processes and through lost connections."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from contract.servers import mongo_database, redis_program, wait_for_port, wanted

from agent_runner.errors import ConflictError, SettingsError, UnavailableError
from agent_runner.ports.stores import LogHead, ResourceKey, StoredResource

wanted("pymongo", "redis")

from redis.asyncio import Redis  # noqa: E402

from agent_runner.adapters.announcers.redis import RedisAnnouncer  # noqa: E402
from agent_runner.adapters.store.mongo import MongoEventLog, MongoResourceStore  # noqa: E402
from agent_runner.adapters.store.mongo_database import MongoDatabase  # noqa: E402

NOBODY = "127.0.0.1:9"
"""The discard port, where nothing listens."""


@pytest.fixture
def database_url(mongo_url: str) -> str:
    return f"{mongo_url}/test_{uuid.uuid4().hex}"


@asynccontextmanager
async def two(database_url: str) -> AsyncIterator[tuple[MongoDatabase, MongoDatabase]]:
    async with mongo_database(database_url) as one, mongo_database(database_url) as other:
        yield one, other


async def test_replicas_append_to_one_log_without_gaps(database_url: str) -> None:
    async def add(log: MongoEventLog, count: int) -> None:
        while count:
            head = await log.head("ex-1")
            seq = head.last_seq
            follows = LogHead(seq + 1, 1, seq + 1, seq, b"snapshot %d" % (seq // 3))
            try:
                await log.append("ex-1", [b"event %d" % (seq + 1)], expected_seq=seq, head=follows)
            except ConflictError:
                continue
            count -= 1

    async with two(database_url) as (one, other):
        await asyncio.gather(*(add(MongoEventLog(database), 10) for database in (one, other, one)))
        log = MongoEventLog(other)
        assert list(await log.read("ex-1")) == [(seq, b"event %d" % seq) for seq in range(1, 31)]
        assert (await log.head("ex-1")).snapshot == b"snapshot 9"
        assert await one.snapshots.count_documents({}) == 1


async def test_replicas_see_each_other_s_resources(database_url: str) -> None:
    resource = StoredResource(ResourceKey("agent", "agt-1"), "acme", "helper", b"body")
    async with two(database_url) as (one, other):
        await MongoResourceStore(one).put(resource, expected=0)
        assert (await MongoResourceStore(other).get(resource.key)).body == b"body"


async def test_a_snapshot_left_by_a_crash_is_cleared_away(database_url: str) -> None:
    async with mongo_database(database_url) as database:
        log = MongoEventLog(database)
        await log.append("ex-1", [b"1"], expected_seq=0, head=LogHead(1, snapshot=b"one"))
        await database.snapshots.insert_one({"execution": "ex-1", "revision": 2, "body": b"of a dead writer"})
        await log.append("ex-1", [b"2"], expected_seq=1, head=LogHead(2, snapshot=b"two"))
        await log.append("ex-1", [b"3"], expected_seq=2, head=LogHead(3, snapshot=b"three"))

        assert (await log.head("ex-1")).snapshot == b"three"
        assert await database.snapshots.count_documents({}) == 1


async def test_a_large_log_is_compacted_into_several_documents(database_url: str) -> None:
    async with mongo_database(database_url) as database:
        log = MongoEventLog(database)
        events = [bytes([number]) * 3_000_000 for number in range(8)]
        for seq, event in enumerate(events):
            await log.append("ex-1", [event], expected_seq=seq, head=LogHead(seq + 1, snapshot=b"s"))
        kept = [(1, events[0]), (4, events[3]), (7, events[6]), (8, b"end")]
        await log.replace("ex-1", kept)
        await log.append("ex-1", [b"on"], expected_seq=8, head=LogHead(9, snapshot=b"t"))

        assert list(await log.read("ex-1")) == [*kept, (9, b"on")]
        assert await log.head("ex-1") == LogHead(9, snapshot=b"t")


async def test_of_replicas_that_compact_one_log_at_once_one_wins_and_the_others_are_told(
    database_url: str,
) -> None:
    async with two(database_url) as (one, other):
        for seq in range(30):
            await MongoEventLog(one).append("ex-1", [b"event"], expected_seq=seq, head=LogHead(seq + 1))
        left = [(number, b"compacted") for number in (10, 20, 30)]
        logs = [MongoEventLog(one), *(MongoEventLog(other) for _ in range(3))]
        ends = await asyncio.gather(*(log.replace("ex-1", left) for log in logs), return_exceptions=True)

        assert None in ends
        assert {type(end) for end in ends} <= {type(None), ConflictError}
        assert list(await MongoEventLog(one).read("ex-1")) == left


async def test_a_newer_schema_is_refused(database_url: str) -> None:
    async with mongo_database(database_url) as database:
        await database._schema.update_one({"_id": "version"}, {"$set": {"version": 99}})
    with pytest.raises(SettingsError, match="schema version 99"):
        await MongoDatabase(database_url).open()


async def test_a_cluster_that_is_away_is_said() -> None:
    database = MongoDatabase(f"mongodb://{NOBODY}", timeout=0.5)
    with pytest.raises(UnavailableError, match="MongoDB cannot be used") as caught:
        await database.open()
    assert NOBODY in str(caught.value) and "Topology" not in str(caught.value)


def test_a_wrong_address_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match="MongoDB address"):
        MongoDatabase("mongodb://a:b:c")
    with pytest.raises(SettingsError, match="Redis address"):
        RedisAnnouncer("localhost")


@pytest.mark.parametrize("make", [MongoDatabase, RedisAnnouncer])
def test_a_wrong_address_is_told_without_its_password(make: Callable[[str], object]) -> None:
    scheme = "mongodb" if make is MongoDatabase else "redis"
    with pytest.raises(SettingsError, match="escape") as caught:
        make(f"{scheme}://me:canary/canary@host/db")
    assert "canary" not in str(caught.value) + repr(caught.value.__cause__)
    assert caught.value.__suppress_context__


# Announcements


async def take(messages: AsyncIterator[bytes]) -> bytes:
    async with asyncio.timeout(120):
        return await anext(messages)


async def test_what_one_replica_publishes_reaches_the_others(redis_url: str) -> None:
    async with (
        RedisAnnouncer(redis_url) as one,
        RedisAnnouncer(redis_url) as other,
        one.subscribe("a") as here,
        other.subscribe("a") as there,
        other.subscribe("b") as apart,
    ):
        await one.publish("a", b"1")
        await other.publish("b", b"2")
        assert [await take(here), await take(there), await take(apart)] == [b"1", b"1", b"2"]


async def test_a_server_that_is_away_is_said() -> None:
    announcer = RedisAnnouncer(f"redis://{NOBODY}")
    with pytest.raises(UnavailableError, match="Redis cannot be used"):
        await announcer.open()


@pytest.mark.parametrize(
    "rules", ["+@all resetchannels", "+@all allchannels -publish", "+@all allchannels -subscribe"]
)
async def test_a_user_who_may_not_announce_is_a_wrong_setting(redis_url: str, rules: str) -> None:
    async with Redis.from_url(redis_url) as admin:
        await admin.execute_command("ACL", "SETUSER", "guest", "reset", "on", ">canary", "~*", *rules.split())
    with pytest.raises(SettingsError, match="Redis refuses the user") as caught:
        await RedisAnnouncer(redis_url.replace("://", "://guest:canary@")).open()
    assert "canary" not in str(caught.value)


class RestartableRedis:
    """A server that can be killed and started again at the same port."""

    def __init__(self, program: str, port: int) -> None:
        self._command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        self._port = port
        self.url = f"redis://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(self._port, self._process)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(300)
            self._process = None


@pytest.fixture
def redis_server(unused_tcp_port: int) -> Iterator[RestartableRedis]:
    server = RestartableRedis(redis_program(), unused_tcp_port)
    server.start()
    yield server
    server.kill()


async def test_a_lost_connection_is_told_to_subscribers_and_comes_back(
    redis_server: RestartableRedis,
) -> None:
    async with RedisAnnouncer(redis_server.url) as announcer:
        async with announcer.subscribe("a") as messages:
            await asyncio.to_thread(redis_server.kill)
            with pytest.raises(UnavailableError):
                await take(messages)
        await asyncio.to_thread(redis_server.start)

        assert await until_subscribed(announcer) == b"back"


async def test_a_frozen_server_holds_nobody_up_and_hears_later_what_was_published(
    redis_server: RestartableRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_runner.adapters.announcers.redis._SILENCE_SECONDS", 0.2)
    async with RedisAnnouncer(redis_server.url) as announcer, RedisAnnouncer(redis_server.url) as other:
        async with announcer.subscribe("a") as messages, other.subscribe("b") as there:
            redis_server.freeze()
            sending = asyncio.gather(*(announcer.publish("b", b"%d" % number) for number in range(1000)))
            assert sending.done() or await sending  # without a word of the server
            # Nobody hears that a connection is dead: it has to be asked.
            with pytest.raises(UnavailableError):
                await take(messages)
            redis_server.thaw()
            with contextlib.suppress(UnavailableError):  # it may have lost its connection as well
                assert await take(there) == b"0"
        assert await until_subscribed(announcer) == b"back"


async def until_subscribed(announcer: RedisAnnouncer) -> Any:
    async with asyncio.timeout(120):
        while True:
            try:
                async with announcer.subscribe("a") as messages:
                    await announcer.publish("a", b"back")
                    return await take(messages)
            except UnavailableError:
                await asyncio.sleep(0.05)
