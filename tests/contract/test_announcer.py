"""What every Announcer keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from agent_runner.adapters.announcers.memory import MemoryAnnouncer
from agent_runner.errors import SlowWatcherError
from agent_runner.ports.announcers import Announcer

LIMIT = 100


@asynccontextmanager
async def memory(request: pytest.FixtureRequest) -> AsyncIterator[Announcer]:
    yield MemoryAnnouncer(queue_limit=LIMIT)


@asynccontextmanager
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[Announcer]:
    url = request.getfixturevalue("redis_url")
    from agent_runner.adapters.announcers.redis import RedisAnnouncer

    async with RedisAnnouncer(url, queue_limit=LIMIT) as announcer:
        yield announcer


ANNOUNCERS: dict[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Announcer]]] = {
    "memory": memory,
    "redis": redis,
}


@pytest.fixture(params=ANNOUNCERS)
async def announcer(request: pytest.FixtureRequest) -> AsyncIterator[Announcer]:
    async with ANNOUNCERS[request.param](request) as opened:
        yield opened


async def take(messages: AsyncIterator[bytes], count: int) -> list[bytes]:
    async with asyncio.timeout(120):
        return [await anext(messages) for _ in range(count)]


async def take_until(messages: AsyncIterator[bytes], last: bytes) -> list[bytes]:
    taken: list[bytes] = []
    while last not in taken:
        taken += await take(messages, 1)
    return taken


async def test_subscribers_of_a_topic_get_what_is_published_in_order(announcer: Announcer) -> None:
    async with announcer.subscribe("a") as one, announcer.subscribe("a") as two:
        for text in (b"1", b"2", b"3"):
            await announcer.publish("a", text)

        assert await take(one, 3) == [b"1", b"2", b"3"]
        assert await take(two, 3) == [b"1", b"2", b"3"]


async def test_topics_do_not_mix_and_earlier_messages_are_gone(announcer: Announcer) -> None:
    await announcer.publish("a", b"before")
    async with announcer.subscribe("a") as messages:
        await announcer.publish("b", b"other")
        await announcer.publish("a", b"mine")

        # Only what was published a moment before may still be on its way.
        assert await take_until(messages, b"mine") in ([b"mine"], [b"before", b"mine"])


async def test_a_waiting_subscriber_wakes_up(announcer: Announcer) -> None:
    async with announcer.subscribe("a") as messages:
        waiting = asyncio.ensure_future(take(messages, 1))
        await asyncio.sleep(0)
        await announcer.publish("a", b"now")

        assert await waiting == [b"now"]


async def test_messages_can_be_read_as_they_come(announcer: Announcer) -> None:
    async with announcer.subscribe("a") as messages:
        for number in range(3 * LIMIT):
            await announcer.publish("a", str(number).encode())
            assert await take(messages, 1) == [str(number).encode()]


async def test_a_subscriber_that_does_not_read_is_cut_off(announcer: Announcer) -> None:
    async with announcer.subscribe("a") as slow, announcer.subscribe("a") as quick:
        for number in range(3 * LIMIT):
            await announcer.publish("a", str(number).encode())
            await take(quick, 1)

        with pytest.raises(SlowWatcherError):
            await take(slow, 3 * LIMIT)


async def test_publishing_goes_on_after_a_subscriber_left(announcer: Announcer) -> None:
    async with announcer.subscribe("a"):
        await announcer.publish("a", b"1")
    await announcer.publish("a", b"2")

    async with announcer.subscribe("a") as messages:
        await announcer.publish("a", b"3")
        # Those published a moment before may come too.
        assert await take_until(messages, b"3") in ([b"3"], [b"2", b"3"], [b"1", b"2", b"3"])
