"""How often an execution is tried again, and after what pause.

Handing an execution over to another worker is part of running it, and counts nowhere. A turn that failed
and a worker that was lost are counted apart, and anew after each step the execution has made: a day of
work is not given up for what went wrong in its course.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from agent_runner.v1.events_pb2 import ATTEMPT_END_FAILED, AttemptEnded, AttemptStarted
from agent_runner.v1.status_pb2 import RunStatus
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import MESSAGE_AI, TOOL_CALL_COMPLETED

_FIRST_PAUSE: Final = timedelta(milliseconds=200)
_LONGEST_PAUSE: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class AttemptLimits:
    """When an execution is given up.

    Attributes:
        failed: attempts whose turn failed, without a step in between.
        lost: attempts that were lost with their workers, without a step in between. A turn that kills
            its worker does so each time.
        broken: both, in all: for a turn that kills its worker after another step each time.
    """

    failed: int = 20
    lost: int = 10
    broken: int = 100


LIMITS: Final = AttemptLimits()


def was_last(status: AgentExecutionStatus, limits: AttemptLimits = LIMITS) -> bool:
    """Whether an attempt whose turn fails now is not to be followed by another one."""
    failed = 0 if _got_further(status) else status.run.failed_in_a_row
    return failed + 1 >= limits.failed or status.run.broken_attempts + 1 >= limits.broken


def why_over(status: AgentExecutionStatus, limits: AttemptLimits = LIMITS) -> str | None:
    """What to say of an execution whose newest attempt was lost; None when there is to be another one."""
    lost = 1 if _got_further(status) else status.run.lost_in_a_row + 1
    if lost >= limits.lost:
        return (
            f"The runner stopped answering {lost} times in a row, and the execution got no further. It may "
            "be what the execution does that ends the runner; its log may say more."
        )
    if status.run.broken_attempts + 1 >= limits.broken:
        return f"{status.run.broken_attempts + 1} attempts failed or were lost together with their runners."
    return None


def pause_before_next(run: RunStatus) -> timedelta:
    """How long to wait after a turn that failed, counted already; twice as long each time in a row."""
    doublings = min(max(run.failed_in_a_row - 1, 0), 16)
    return min(_FIRST_PAUSE * (1 << doublings), _LONGEST_PAUSE)


# Counting, as a part of the fold of events


def count_start(status: AgentExecutionStatus, attempt: int, started: AttemptStarted) -> None:
    """A worker took the execution."""
    run = status.run
    run.attempt, run.held = attempt, True
    if started.lost_before:
        _begin_anew_after_a_step(status)
        run.lost_in_a_row += 1
        run.broken_attempts += 1


def count_end(status: AgentExecutionStatus, ended: AttemptEnded) -> None:
    """A worker let go of it."""
    run = status.run
    run.held = False
    if ended.how == ATTEMPT_END_FAILED:
        _begin_anew_after_a_step(status)
        run.failed_in_a_row += 1
        run.broken_attempts += 1


def _begin_anew_after_a_step(status: AgentExecutionStatus) -> None:
    if _got_further(status):
        status.run.steps = _steps(status)
        status.run.failed_in_a_row = status.run.lost_in_a_row = 0


def _got_further(status: AgentExecutionStatus) -> bool:
    """Whether a step was made since the newest attempt that went wrong."""
    return _steps(status) > status.run.steps


def _steps(status: AgentExecutionStatus) -> int:
    """Finished messages of agents and completed calls: what a resumed attempt says again counts once."""
    messages = itertools.chain(status.messages, *(s.messages for s in status.sub_agent_executions))
    said = sum(message.type == MESSAGE_AI and not message.streaming for message in messages)
    return said + sum(call.status == TOOL_CALL_COMPLETED for call in status.tool_calls)
