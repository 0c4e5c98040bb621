"""Running a service as a process: signals, the way out, and leaving nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog

from agent_runner.errors import AgentRunnerError

log = structlog.get_logger(__name__)

_SWITCH_SECONDS = 0.0005

Service = Callable[[asyncio.Event], Awaitable[None]]
"""Serves until the event is set, then stops by itself, in bounded time."""


def run_service(service: Service) -> int:
    """Run until SIGINT or SIGTERM; a second signal leaves at once.

    Returns:
        The exit code: 0 after a signal, 1 after an error, which is told on standard error.
    """
    # Every durable write waits for a thread that needs the interpreter for microseconds. With the default
    # of 5 ms a busy event loop keeps it out that long each time.
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        return asyncio.run(_serve(service))
    except AgentRunnerError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201 (the process may have no log yet)
        return 1


def settle() -> None:
    """Leave what start-up made out of garbage collection from now on.

    Some hundred thousand objects of modules live as long as the process; walking them again and again
    stops every stream for a tenth of a second each time.
    """
    gc.collect()
    gc.freeze()


async def _serve(service: Service) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            log.warning("second signal, leaving at once", signal=signal.Signals(number).name)
            leave(128 + number)
        log.info("stopping", signal=signal.Signals(number).name)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    await service(stop)
    return 0


def leave(code: int) -> NoReturn:
    """End the process without interpreter shutdown.

    A process that has opened a Temporal client can abort in the interpreter's exit (an upstream bug,
    open since 2023); everything of ours is closed by now, so nothing is lost.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
