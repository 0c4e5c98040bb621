"""Waiting for a control plane that is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from agent_runner.errors import UnavailableError

log = structlog.get_logger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
T = TypeVar("T")


async def patiently(call: Callable[[], Awaitable[T]], execution_id: str) -> T:
    """The answer of the call, made again for as long as the control plane is away.

    Without end: the caller's own time limit or cancel is the end.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            return await call()
        except UnavailableError as error:
            # Once per outage is enough for people.
            tell = log.warning if pause == _FIRST_PAUSE else log.debug
            tell("waiting for the control plane", execution_id=execution_id, reason=str(error))
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
