"""Fan-out inside one process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent_runner.errors import AgentRunnerError, SlowWatcherError


class _Subscription:
    """Messages one subscriber has not read yet. Belongs to one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._messages: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._failure: AgentRunnerError | None = None

    def offer(self, message: bytes) -> None:
        if len(self._messages) >= self._limit:
            self.fail(SlowWatcherError(0))
        if self._failure is None:
            self._messages.append(message)
        self._arrived.set()

    def fail(self, failure: AgentRunnerError) -> None:
        """End the subscription. What waited is let go: the subscriber goes on from the log anyway."""
        self._messages.clear()
        self._failure = failure
        self._arrived.set()

    async def messages(self) -> AsyncIterator[bytes]:
        while True:
            await self._arrived.wait()
            if self._failure is not None:
                raise self._failure
            yield self._messages.popleft()
            if not self._messages and self._failure is None:
                self._arrived.clear()


class MemoryAnnouncer:
    """Hands messages to subscribers on the same event loop.

    Args:
        queue_limit: how many unread messages a subscriber may have before it is cut off.
    """

    def __init__(self, *, queue_limit: int = 1000) -> None:
        self._queue_limit = queue_limit
        self._topics: dict[str, set[_Subscription]] = {}

    async def publish(self, topic: str, message: bytes) -> None:
        for subscription in self._topics.get(topic, ()):
            subscription.offer(message)

    def fail(self, failure: AgentRunnerError) -> None:
        """End every subscription with an error."""
        for subscriptions in self._topics.values():
            for subscription in subscriptions:
                subscription.fail(failure)

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[AsyncIterator[bytes]]:
        subscription = _Subscription(self._queue_limit)
        self._topics.setdefault(topic, set()).add(subscription)
        try:
            yield subscription.messages()
        finally:
            subscriptions = self._topics[topic]
            subscriptions.discard(subscription)
            if not subscriptions:
                del self._topics[topic]
