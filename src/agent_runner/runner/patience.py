"""Waiting for a control plane that is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from agent_runner.errors import AgentRunnerError, UnavailableError

log = structlog.get_logger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_FAULT_PATIENCE = 300.0
"""Seconds for which a control plane that answers, but fails, is asked again."""
T = TypeVar("T")


async def patiently(call: Callable[[], Awaitable[T]], execution_id: str) -> T:
    """The answer of the call, made again for as long as the control plane is away.

    Without end: the caller's own time limit or cancel is the end. A fault that may pass is put up with for
    five minutes.
    """
    pause, failing_since = _FIRST_PAUSE, None
    reason: AgentRunnerError
    loop = asyncio.get_running_loop()
    while True:
        try:
            return await call()
        except UnavailableError as error:
            failing_since, reason = None, error
        except AgentRunnerError as error:
            failing_since, reason = failing_since or loop.time(), error
            if not error.retryable or loop.time() - failing_since > _FAULT_PATIENCE:
                raise
        # Once per outage is enough for people.
        tell = log.warning if pause == _FIRST_PAUSE else log.debug
        tell("waiting for the control plane", execution_id=execution_id, reason=str(reason))
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
