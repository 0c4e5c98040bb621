"""Keeping a worker of Temporal running, in either kind of process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from agent_runner.adapters.temporal.connection import TemporalConnection

log = structlog.get_logger(__name__)


@asynccontextmanager
async def once_connected(
    connection: TemporalConnection, work: Callable[[], Awaitable[None]]
) -> AsyncIterator[None]:
    """Do the work for as long as the context is open, from when Temporal can be reached.

    Work that fails, such as a worker whose namespace is gone, is begun again.
    """

    async def keep_working() -> None:
        while True:
            await connection.wait()
            try:
                await work()
            except asyncio.CancelledError:
                raise
            # The edge of a task nobody watches: the SDK raises RuntimeError for whatever ended its worker.
            except Exception:
                log.exception("a worker ended by itself and is started again")
            await asyncio.sleep(1)

    task = asyncio.create_task(keep_working(), name="worker")
    # A worker that is there already when the API opens makes the first start eager.
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
