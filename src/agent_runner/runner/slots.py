"""How many executions a runner carries: up to a number, and no more of them while memory is short."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta

import structlog
from temporalio.worker import (
    CustomSlotSupplier,
    SlotMarkUsedContext,
    SlotPermit,
    SlotReleaseContext,
    SlotReserveContext,
)

log = structlog.get_logger(__name__)

LOOK_EVERY = timedelta(seconds=1)


class MemorySlots(CustomSlotSupplier):
    """Slots for activities.

    The SDK takes slots ahead of the tasks, one for each poller. So up to five executions may still come
    when memory has run short, and one does always: what else fills the memory may stay for ever.

    Args:
        most: slots there are.
        short: whether memory is short; asked often, from the event loop.
        look_every: how often it is asked while somebody waits.
    """

    def __init__(self, most: int, short: Callable[[], bool], *, look_every: timedelta = LOOK_EVERY) -> None:
        self._most = most
        self._short = short
        self._look_every = look_every.total_seconds()
        self._taken = 0
        self._told = False
        # The SDK gives slots back on threads of its own.
        self._lock = threading.Lock()
        self._wakeups: set[Callable[[], None]] = set()

    async def reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit:
        """Wait for a slot."""
        loop, freed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(freed.set)

        with self._lock:
            self._wakeups.add(wake)
        try:
            while True:
                freed.clear()
                if (permit := self.try_reserve_slot(ctx)) is not None:
                    return permit
                full = self._taken >= self._most
                try:
                    async with asyncio.timeout(None if full else self._look_every):
                        await freed.wait()
                except TimeoutError:
                    continue
        finally:
            with self._lock:
                self._wakeups.discard(wake)

    def try_reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit | None:
        """A slot, if there is one now."""
        short = self._short()
        with self._lock:
            if self._taken >= self._most or (short and self._taken):
                self._tell(short)
                return None
            self._taken += 1
            self._tell(False)
            return SlotPermit()

    def mark_slot_used(self, ctx: SlotMarkUsedContext) -> None:
        """A slot counts from when it is taken."""

    def release_slot(self, ctx: SlotReleaseContext) -> None:
        """Give a slot back."""
        with self._lock:
            self._taken -= 1
            waiting = tuple(self._wakeups)
        for wake in waiting:
            wake()

    def _tell(self, short: bool) -> None:
        if short and not self._told:
            log.warning("memory is short: no more executions are taken", running=self._taken)
        elif self._told and not short:
            log.info("executions are taken again", running=self._taken)
        self._told = short
