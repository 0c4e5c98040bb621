from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any, cast

from temporalio.worker import SlotReleaseContext, SlotReserveContext

from agent_runner.runner.slots import MemorySlots

CONTEXT = cast("SlotReserveContext", None)


class Memory:
    """Says what it is told to, and when it is asked."""

    def __init__(self, *, short: bool = False) -> None:
        self.short = short
        self.asked = asyncio.Event()

    def __call__(self) -> bool:
        self.asked.set()
        return self.short


def release(slots: MemorySlots) -> None:
    """As the SDK does it, on another thread."""
    context: Any = None
    thread = threading.Thread(target=slots.release_slot, args=(cast("SlotReleaseContext", context),))
    thread.start()
    thread.join()


async def test_there_are_so_many_slots_and_one_that_is_given_back_goes_to_who_waits() -> None:
    slots = MemorySlots(2, Memory(), look_every=timedelta(hours=1))
    await slots.reserve_slot(CONTEXT)
    await slots.reserve_slot(CONTEXT)
    assert slots.try_reserve_slot(CONTEXT) is None
    waiting = asyncio.create_task(slots.reserve_slot(CONTEXT))
    await asyncio.sleep(0)
    assert not waiting.done()
    release(slots)
    assert await waiting is not None


async def test_while_memory_is_short_one_is_given_and_no_more() -> None:
    memory = Memory(short=True)
    slots = MemorySlots(10, memory, look_every=timedelta(milliseconds=1))
    assert await slots.reserve_slot(CONTEXT) is not None
    waiting = asyncio.create_task(slots.reserve_slot(CONTEXT))
    for _ in range(3):
        memory.asked.clear()
        await memory.asked.wait()
    assert not waiting.done()
    memory.short = False
    assert await waiting is not None


async def test_who_stops_waiting_takes_nothing() -> None:
    slots = MemorySlots(1, Memory(), look_every=timedelta(hours=1))
    await slots.reserve_slot(CONTEXT)
    waiting = asyncio.create_task(slots.reserve_slot(CONTEXT))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    release(slots)
    assert slots.try_reserve_slot(CONTEXT) is not None
