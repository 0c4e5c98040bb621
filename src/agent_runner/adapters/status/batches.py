"""When what an attempt has to say leaves: few messages, and soon where somebody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from agent_runner.adapters.status.outbox import Outbox
from agent_runner.v1.events_pb2 import ExecutionEvent

_SOON = 0.01
"""Seconds the beginning of a message waits: often its first words go with it."""
_LONGEST_REST = 0.25


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """When a batch leaves.

    Attributes:
        events: after this many, text that is joined to text counting once, or
        interval: this long after the batch before; at once when that is longer ago already, where a
            phase changes and where somebody waits for it, as for a tool that has effects; 10 ms after the
            batch before where a message begins.

    What nobody waits for rests after a batch for as long as that took to be stored, at most 0.25 s: where
    sending is slow, since the machine is busy or the control plane far away, fewer and larger batches leave.
    """

    events: int = 10
    interval: timedelta = timedelta(milliseconds=100)


class Batches:
    """An outbox that says when its next batch is due. Made and used in one event loop."""

    def __init__(self, settings: BatchSettings) -> None:
        self._settings = settings
        self._outbox = Outbox()
        self._loop = asyncio.get_running_loop()
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._last_left = self._loop.time() - settings.interval.total_seconds()
        self._rests_until = self._last_left
        self._away = False
        """Whether a batch has left and is not known to be stored."""

    def __bool__(self) -> bool:
        return bool(self._outbox)

    def put(self, event: ExecutionEvent) -> int:
        """Take an event; returns how many events have left once it has."""
        count = self._outbox.put(event)
        self._schedule()
        return count

    def peek(self) -> Iterator[ExecutionEvent]:
        """What waits, in order."""
        return self._outbox.peek()

    def hurry(self) -> None:
        """Somebody waits for what waits here."""
        if self._outbox:
            self._outbox.urgent = True
            self._due.set()

    async def due(self) -> None:
        """Return when a batch is to leave; to be called when the one before is stored."""
        if self._away:
            self._away = False
            stored = self._loop.time()
            self._rests_until = stored + min(stored - self._last_left, _LONGEST_REST)
        self._schedule()
        await self._due.wait()

    def take(self) -> tuple[bool, Sequence[ExecutionEvent]]:
        """The next batch, due or not, and whether something urgent is in it or waits behind it."""
        self._due.clear()
        self.close()
        urgent = self._outbox.urgent
        batch = self._outbox.take()
        if batch:
            self._last_left = self._loop.time()
            self._away = True
        return urgent, batch

    def close(self) -> None:
        """Set no timer any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        """Wake who waits now, or set the timer that will."""
        if self._due.is_set() or self._away or not self._outbox:
            return
        due = max(self._last_left + self._interval(), self._rests_until)
        if self._outbox.urgent or due <= self._loop.time():
            self._due.set()
        elif self._timer is None or self._timer.when() > due:
            self.close()
            self._timer = self._loop.call_at(due, self._on_timer)

    def _interval(self) -> float:
        if self._outbox.waiting >= self._settings.events:
            return 0.0
        return _SOON if self._outbox.soon else self._settings.interval.total_seconds()

    def _on_timer(self) -> None:
        self._timer = None
        self._due.set()
