"""How often an execution is tried again, and after what pause.

Handing an execution over to another worker is part of running it, and counts nowhere. A turn that failed
and a worker that was lost are counted apart, and anew after each step the execution has made: a day of
work is not given up for what went wrong in its course.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from agent_runner.v1.events_pb2 import ATTEMPT_END_FAILED, AttemptEnded, AttemptStarted
from agent_runner.v1.status_pb2 import RunStatus

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


def was_last(run: RunStatus, limits: AttemptLimits = LIMITS) -> bool:
    """Whether an attempt whose turn fails now is not to be followed by another one."""
    return run.failed_in_a_row + 1 >= limits.failed or run.broken_attempts + 1 >= limits.broken


def why_over(run: RunStatus, limits: AttemptLimits = LIMITS) -> str | None:
    """What to say of an execution whose newest attempt was lost; None when there is to be another one."""
    if run.lost_in_a_row + 1 >= limits.lost:
        return (
            f"The runner stopped answering {run.lost_in_a_row + 1} times in a row, and the execution got "
            "no further. It may be what the execution does that ends the runner; its log may say more."
        )
    if run.broken_attempts + 1 >= limits.broken:
        return f"{run.broken_attempts + 1} attempts failed or were lost together with their runners."
    return None


def pause_before_next(run: RunStatus) -> timedelta:
    """How long to wait after a turn that failed, counted already; twice as long each time in a row."""
    doublings = min(max(run.failed_in_a_row - 1, 0), 16)
    return min(_FIRST_PAUSE * (1 << doublings), _LONGEST_PAUSE)


# Counting, as a part of the fold of events


def count_start(run: RunStatus, attempt: int, started: AttemptStarted) -> None:
    """A worker took the execution."""
    run.attempt, run.held = attempt, True
    if started.lost_before:
        run.lost_in_a_row += 1
        run.broken_attempts += 1


def count_end(run: RunStatus, ended: AttemptEnded) -> None:
    """A worker let go of it."""
    run.held = False
    if ended.how == ATTEMPT_END_FAILED:
        run.failed_in_a_row += 1
        run.broken_attempts += 1


def count_step(run: RunStatus) -> None:
    """A message of the agent or a tool call was finished: what went wrong before is counted anew."""
    run.failed_in_a_row = run.lost_in_a_row = 0
