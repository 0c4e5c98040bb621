"""Fan-out over Redis or Valkey, for control planes of several replicas. Wants the extra `redis`.

One connection listens for the whole process, and hands on to its subscribers in memory: at 100
subscribers that is 30 times the deliveries of a connection for each.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.exceptions import AuthenticationError, RedisError

from agent_runner.adapters.announcers.memory import MemoryAnnouncer
from agent_runner.errors import SettingsError, UnavailableError

log = structlog.get_logger(__name__)

PREFIX: Final = "agent-runner:"
"""Before every channel, since the server may serve others too."""

_ALIVE: Final = PREFIX + "alive"
"""A channel that is always subscribed to: redis-py wants one to listen at all."""

_AGAIN_SECONDS: Final = 0.5
_CONFIRM_SECONDS: Final = 10.0


class RedisAnnouncer:
    """Announces over publish and subscribe, which keeps nothing: what is lost is found in the log.

    When the connection breaks, whoever is subscribed gets UnavailableError, so that he looks into the
    log instead of waiting for what will not come.

    Args:
        url: `redis://host:port/db`, or `rediss://` with TLS.
        queue_limit: how many unread messages a subscriber may have before it is cut off.
    """

    def __init__(self, url: str, *, queue_limit: int = 1000) -> None:
        try:
            self._redis: Any = Redis.from_url(
                url,
                retry=Retry(NoBackoff(), 0),
                socket_connect_timeout=5,
                driver_info=DriverInfo(),  # else each connection looks its version up in files
            )
        except ValueError as error:
            # What it quotes may be a part of the password.
            detail = "escape :/?#[]@% in its user and password as %3A…" if "@" in url else str(error)
            raise SettingsError(f"The Redis address is wrong: {detail}") from None
        self._local = MemoryAnnouncer(queue_limit=queue_limit)
        self._pubsub: Any = self._redis.pubsub()  # partly untyped
        self._subscribers: dict[str, int] = {}
        self._confirmed: dict[str, asyncio.Event] = {}
        self._listening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect and listen.

        Raises:
            SettingsError: the server refuses the user.
            UnavailableError: the server cannot be reached.
        """
        try:
            await self._pubsub.subscribe(_ALIVE)
        except AuthenticationError as error:
            await self.aclose()
            raise SettingsError(
                "Redis refuses the user: check name and password, and that the user may use publish and "
                f"subscribe on {PREFIX}*."
            ) from error
        except (RedisError, OSError) as error:
            await self.aclose()
            raise _unavailable(error) from error
        self._listening = asyncio.create_task(self._listen(), name="redis announcements")

    async def aclose(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening
            self._listening = None
        await self._pubsub.aclose()
        await self._redis.aclose()

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

    async def publish(self, topic: str, message: bytes) -> None:
        try:
            await self._redis.publish(PREFIX + topic, message)
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[AsyncIterator[bytes]]:
        async with self._local.subscribe(topic) as messages:
            await self._join(topic)
            try:
                yield messages
            finally:
                await self._leave(topic)

    async def _join(self, topic: str) -> None:
        """Have the server send a topic's messages; returns once it does."""
        self._subscribers[topic] = self._subscribers.get(topic, 0) + 1
        confirmed = self._confirmed.setdefault(topic, asyncio.Event())
        try:
            if self._subscribers[topic] == 1:
                await self._pubsub.subscribe(PREFIX + topic)
            async with asyncio.timeout(_CONFIRM_SECONDS):
                await confirmed.wait()
        except (RedisError, OSError) as error:
            await self._leave(topic)
            raise _unavailable(error) from error
        except BaseException:
            await self._leave(topic)
            raise

    async def _leave(self, topic: str) -> None:
        self._subscribers[topic] -= 1
        if self._subscribers[topic]:
            return
        del self._subscribers[topic], self._confirmed[topic]
        with contextlib.suppress(RedisError, OSError):
            await self._pubsub.unsubscribe(PREFIX + topic)

    async def _listen(self) -> None:
        while True:
            try:
                async for message in self._pubsub.listen():
                    await self._take(message)
            except (RedisError, OSError) as error:
                log.warning("announcements are away", error=str(error))
                self._local.fail(_unavailable(error))
            await self._connect_again()

    async def _take(self, message: dict[str, Any]) -> None:
        topic = message["channel"].decode().removeprefix(PREFIX)
        if message["type"] == "message":
            await self._local.publish(topic, message["data"])
        elif message["type"] == "subscribe" and topic in self._confirmed:
            self._confirmed[topic].set()

    async def _connect_again(self) -> None:
        """Take a new connection, with the subscriptions there are."""
        while True:
            await asyncio.sleep(_AGAIN_SECONDS)
            await self._pubsub.aclose()
            self._pubsub = self._redis.pubsub()
            try:
                await self._pubsub.subscribe(_ALIVE, *(PREFIX + topic for topic in self._subscribers))
            except (RedisError, OSError):
                continue
            return


def _unavailable(error: Exception) -> UnavailableError:
    said = str(error).rstrip(".")  # the library's own words end in one
    return UnavailableError(f"Redis cannot be used right now: {said}. Try again.")
