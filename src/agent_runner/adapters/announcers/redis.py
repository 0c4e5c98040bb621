"""Fan-out over Redis or Valkey, for control planes of several replicas. Wants the extra `redis`.

One connection listens for the whole process, and hands on to its subscribers in memory: at 100
subscribers that is 30 times the deliveries of a connection for each.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from types import TracebackType
from typing import Any, Final, Self

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from agent_runner.adapters.announcers.memory import MemoryAnnouncer
from agent_runner.errors import SettingsError, UnavailableError

log = structlog.get_logger(__name__)

PREFIX: Final = "agent-runner:"
"""Before every channel, since the server may serve others too."""

_ALIVE: Final = PREFIX + "alive"
"""A channel that is always subscribed to: redis-py wants one to listen at all."""

_AGAIN_SECONDS: Final = 0.5
_CONFIRM_SECONDS: Final = 10.0
_SILENCE_SECONDS: Final = 10.0
"""After which the server is asked whether it is there; after twice that it is taken for gone."""
_MOST_WAITING: Final = 10_000
"""Messages kept for a server that does not take them; the newest ones, which say the most."""
_MOST_AT_ONCE: Final = 500
_LAST_WORDS_SECONDS: Final = 1.0


class RedisAnnouncer:
    """Announces over publish and subscribe, which keeps nothing: what is lost is found in the log.

    When the connection breaks, whoever is subscribed gets UnavailableError, so that he looks into the
    log instead of waiting for what will not come. Who publishes never waits for the server.

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
        self._waiting: deque[tuple[str, bytes]] = deque(maxlen=_MOST_WAITING)
        self._waits = asyncio.Event()
        self._away: UnavailableError | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Connect and listen.

        Raises:
            SettingsError: the server refuses the user, or lets it not publish or subscribe.
            UnavailableError: the server cannot be reached.
        """
        try:
            await self._check()
        except (AuthenticationError, NoPermissionError) as error:
            await self.aclose()
            raise SettingsError(
                "Redis refuses the user: check name and password, and that the user may use publish and "
                f"subscribe on {PREFIX}*."
            ) from error
        except (RedisError, OSError) as error:
            await self.aclose()
            raise _unavailable(error) from error
        self._tasks = [
            asyncio.create_task(self._listen(), name="redis announcements"),
            asyncio.create_task(self._send(), name="redis publishes"),
        ]

    async def _check(self) -> None:
        """Subscribe and publish once; what a user may not do is answered to that alone."""
        async with asyncio.timeout(_CONFIRM_SECONDS):
            await self._pubsub.subscribe(_ALIVE)
            await self._pubsub.get_message(timeout=_CONFIRM_SECONDS)
            await self._redis.publish(_ALIVE, b"")

    async def aclose(self) -> None:
        """Send what waits, within a second, and close."""
        if self._tasks and self._away is None:
            with contextlib.suppress(TimeoutError, RedisError, OSError):
                async with asyncio.timeout(_LAST_WORDS_SECONDS):
                    self._tasks.pop().cancel()
                    while self._waiting:
                        await self._send_some()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
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
        self._waiting.append((PREFIX + topic, message))
        self._waits.set()

    async def _send(self) -> None:
        while True:
            await self._waits.wait()
            try:
                await self._send_some()
            except (RedisError, OSError) as error:
                self._note_away(error)
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _send_some(self) -> None:
        """Send the oldest of what waits. What fails is sent again, and so may come twice."""
        some = list(islice(self._waiting, _MOST_AT_ONCE))
        async with self._redis.pipeline(transaction=False) as pipe:
            for channel, message in some:
                pipe.publish(channel, message)
            await pipe.execute()
        for sent in some:
            # Where too many wait, the oldest are gone already.
            if self._waiting and self._waiting[0] is sent:
                self._waiting.popleft()
        if not self._waiting:
            self._waits.clear()

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
                await self._hear()
            except (RedisError, OSError) as error:
                self._note_away(error)
                self._local.fail(_unavailable(error))
            await self._connect_again()

    async def _hear(self) -> None:
        """Take what the server sends.

        Raises:
            RedisError: the connection is broken, or so silent that it must be.
        """
        asked = False
        while True:
            message = await self._pubsub.get_message(timeout=_SILENCE_SECONDS)
            if message is not None:
                asked = False
                await self._take(message)
            elif asked:
                raise RedisTimeoutError(f"nothing heard for {2 * _SILENCE_SECONDS:g} s")
            else:
                asked = True
                await self._pubsub.ping()

    def _note_away(self, error: Exception) -> None:
        if self._away is None:
            self._away = _unavailable(error)
            log.warning("announcements are away", error=str(error))

    async def _take(self, message: dict[str, Any]) -> None:
        if self._away is not None:
            self._away = None
            log.info("announcements are back")
        topic = (message["channel"] or b"").decode().removeprefix(PREFIX)
        if message["type"] == "message":
            await self._local.publish(topic, message["data"])
        elif message["type"] == "subscribe" and topic in self._confirmed:
            self._confirmed[topic].set()

    async def _connect_again(self) -> None:
        """Take a new connection, with the subscriptions there are."""
        while True:
            await asyncio.sleep(_AGAIN_SECONDS)
            try:
                await self._pubsub.aclose()
                self._pubsub = self._redis.pubsub()
                await self._pubsub.subscribe(_ALIVE, *(PREFIX + topic for topic in self._subscribers))
            except (RedisError, OSError):
                continue
            return


def _unavailable(error: Exception) -> UnavailableError:
    said = str(error).rstrip(".")  # the library's own words end in one
    return UnavailableError(f"Redis cannot be used right now: {said}. Try again.")
