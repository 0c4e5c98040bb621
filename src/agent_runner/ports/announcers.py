"""Telling watchers in every replica that something was appended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class Announcer(Protocol):
    """Fan-out of small messages by topic. Every adapter passes `tests/contract/test_announcer.py`.

    A message may be lost or come twice (it says where to look, the log says what is there); a
    subscriber that stops reading costs a bounded amount of memory.
    """

    async def publish(self, topic: str, message: bytes) -> None:
        """Hand the message to whoever is subscribed when it arrives.

        Waits neither for subscribers nor for a server: while that is away, messages wait or are lost.
        """
        ...

    def subscribe(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Messages published after the context was entered; those of a moment before may come too.

        The iterator raises SlowWatcherError when more messages wait than the adapter holds, and
        UnavailableError when the adapter lost its connection, and with it messages.
        """
        ...
