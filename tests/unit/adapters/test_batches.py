from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest

from agent_runner.adapters.status.batches import Batches, BatchSettings
from agent_runner.v1.events_pb2 import (
    ExecutionEvent,
    MessageDelta,
    MessageStarted,
    PhaseChanged,
    UsageReported,
)


class Clock:
    """An event loop's clock and its one timer, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.at: float | None = None
        self._call: Callable[[], None] = lambda: None

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> Clock:
        self.at, self._call = when, call
        return self

    def when(self) -> float:
        assert self.at is not None
        return self.at

    def cancel(self) -> None:
        self.at = None

    def wait(self, seconds: float) -> None:
        self.now += seconds
        if self.at is not None and self.at <= self.now:
            self.at = None
            self._call()


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock()


@pytest.fixture
async def batches(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Batches:
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "get_running_loop", lambda: clock)
        return Batches(BatchSettings(events=3, interval=timedelta(seconds=0.1)))


async def is_due(batches: Batches) -> bool:
    asking = asyncio.create_task(batches.due())
    await asyncio.sleep(0)
    asking.cancel()
    return asking.done()


def text(message: str = "m") -> ExecutionEvent:
    return ExecutionEvent(message_delta=MessageDelta(message_id=message, text="word "))


def usage() -> ExecutionEvent:
    return ExecutionEvent(usage_reported=UsageReported())


def phase() -> ExecutionEvent:
    return ExecutionEvent(phase_changed=PhaseChanged())


async def sent(batches: Batches, clock: Clock, seconds: float) -> None:
    """A batch leaves and is stored after so long."""
    batches.take()
    clock.wait(seconds)
    await is_due(batches)


async def test_the_first_text_leaves_at_once_and_the_next_after_the_interval(
    batches: Batches, clock: Clock
) -> None:
    batches.put(text())
    assert await is_due(batches)
    await sent(batches, clock, 0.001)
    batches.put(text())
    assert not await is_due(batches)
    clock.wait(0.1)
    assert await is_due(batches)


async def test_a_boundary_leaves_soon_and_a_phase_at_once(batches: Batches, clock: Clock) -> None:
    batches.put(text())
    await sent(batches, clock, 0.001)
    batches.put(ExecutionEvent(message_started=MessageStarted(message_id="n")))
    assert not await is_due(batches)
    clock.wait(0.01)
    assert await is_due(batches)
    await sent(batches, clock, 0.001)
    batches.put(phase())
    assert await is_due(batches)


async def test_many_events_do_not_wait_for_the_interval(batches: Batches, clock: Clock) -> None:
    batches.put(text())
    await sent(batches, clock, 0.001)
    clock.wait(0.002)
    for _ in range(3):
        assert not await is_due(batches)
        batches.put(usage())
    assert await is_due(batches)


@pytest.mark.parametrize(("took", "rest"), [(0.05, 0.05), (0.2, 0.2), (3.0, 0.25)])
async def test_where_sending_is_slow_what_nobody_waits_for_rests_as_long(
    batches: Batches, clock: Clock, took: float, rest: float
) -> None:
    batches.put(text())
    await sent(batches, clock, took)
    for _ in range(5):
        batches.put(usage())
    clock.wait(rest * 0.9)
    assert not await is_due(batches)
    clock.wait(rest * 0.11)
    assert await is_due(batches)


@pytest.mark.parametrize("hurry", ["phase", "somebody waits"])
async def test_what_somebody_waits_for_does_not_rest(batches: Batches, clock: Clock, hurry: str) -> None:
    batches.put(text())
    await sent(batches, clock, 0.2)
    batches.put(text())
    if hurry == "phase":
        batches.put(phase())
    else:
        batches.hurry()
    assert await is_due(batches)


@pytest.mark.parametrize("late", [True, False])
async def test_what_comes_while_a_batch_is_away_waits_for_its_turn(
    batches: Batches, clock: Clock, late: bool
) -> None:
    batches.put(text())
    batches.take()
    batches.put(phase() if late else text())
    clock.wait(0.2)
    assert await is_due(batches) == late
