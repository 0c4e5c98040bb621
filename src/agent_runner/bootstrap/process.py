"""Running a service as a process: signals, the way out, and leaving nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Literal, NoReturn

import structlog

log = structlog.get_logger(__name__)

_SWITCH_SECONDS = 0.0005

Service = Callable[[asyncio.Event], Awaitable[None]]
"""Serves until the event is set, then stops by itself, in bounded time. Until it waits for the event it is
still starting, and is cancelled."""


def run_service(service: Service) -> int:
    """Run until SIGINT or SIGTERM; a second signal leaves at once.

    Returns:
        The exit code after a signal, 0.

    Raises:
        AgentRunnerError: it could not start or go on.
    """
    # Every durable write waits for a thread that needs the interpreter for microseconds. With the default
    # of 5 ms a busy event loop keeps it out that long each time.
    sys.setswitchinterval(_SWITCH_SECONDS)
    return asyncio.run(_serve(service))


def settle() -> None:
    """Leave what start-up made out of garbage collection from now on.

    Some hundred thousand objects of modules live as long as the process; walking them again and again
    stops every stream for a tenth of a second each time.
    """
    gc.collect()
    gc.freeze()


class _Stop(asyncio.Event):
    """Set by the first signal."""

    awaited = False
    """Whether somebody waits for it, or has: from then on the service stops by itself."""

    async def wait(self) -> Literal[True]:
        self.awaited = True
        return await super().wait()


async def _serve(service: Service) -> int:
    stop = _Stop()
    loop = asyncio.get_running_loop()
    serving = asyncio.ensure_future(service(stop))

    def on_signal(number: int) -> None:
        if stop.is_set():
            log.warning("second signal, leaving at once", signal=signal.Signals(number).name)
            leave(128 + number)
        log.info("stopping", signal=signal.Signals(number).name)
        stop.set()
        if not stop.awaited:
            # It may wait for Temporal or a database that is away, for as long as that takes.
            serving.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await serving
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    return 0


def leave(code: int) -> NoReturn:
    """End the process without interpreter shutdown.

    A process that has opened a Temporal client can abort in the interpreter's exit (an upstream bug,
    open since 2023); everything of ours is closed by now, so nothing is lost.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
