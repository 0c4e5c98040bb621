"""Saying that an activity lives, however silent it is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from temporalio import activity

INTERVAL = timedelta(milliseconds=800)
"""So that a cancel which comes with the answer is there within a second. Each costs a millisecond or two."""
PER_TIMEOUT = 4
"""So many heartbeats at least in the time after which an activity is taken for dead."""


@asynccontextmanager
async def heartbeats() -> AsyncIterator[None]:
    """Heartbeat at once and then on a timer, every 0.8 s or more often, until the block is left.

    The details are empty: what was done is in the event log.
    """
    timeout = activity.info().heartbeat_timeout
    interval = min(INTERVAL, timeout / PER_TIMEOUT) if timeout else INTERVAL
    ticker = asyncio.create_task(_tick(interval.total_seconds()), name="heartbeats")
    try:
        yield
    finally:
        ticker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticker


async def _tick(seconds: float) -> None:
    while True:
        activity.heartbeat()
        await asyncio.sleep(seconds)
