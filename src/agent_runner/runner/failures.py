"""Our errors as Temporal's: which are tried again, and what people read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import structlog
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from agent_runner.domain.attempts import pause_before_next
from agent_runner.errors import AgentRunnerError
from agent_runner.v1.status_pb2 import RunStatus

log = structlog.get_logger(__name__)

DRAINED = "Drained"
MOST_UNCOUNTED = 100
"""Attempts of a workflow's activity, after which a failure nobody counts ends it."""
_MOST_TEXT = 2000


def short(text: str, most: int = _MOST_TEXT) -> str:
    """Text cut to a length that history and a status can carry."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def final(text: str, kind: str) -> ApplicationError:
    """A failure nobody is to try again, and which was logged where it came up."""
    return ApplicationError(
        short(text), type=kind, non_retryable=True, category=ApplicationErrorCategory.BENIGN
    )


def as_failure(
    error: AgentRunnerError,
    *,
    retryable: bool | None = None,
    text: str | None = None,
    after: RunStatus | None = None,
) -> ApplicationError:
    """The error as Temporal takes it; its type is the name of ours.

    To be raised `from None`: a cause would be written into history as well, stack and all, and it may
    hold what `text` leaves out.

    Args:
        after: how the run has gone so far, which says how long to wait; without it the workflow says so.
    """
    again = error.retryable if retryable is None else retryable
    return ApplicationError(
        short(str(error) if text is None else text),
        type=type(error).__name__,
        non_retryable=not again,
        next_retry_delay=pause_before_next(after) if again and after is not None else None,
        category=ApplicationErrorCategory.BENIGN,
    )


def uncounted(error: Exception, text: str, attempt: int) -> ApplicationError:
    """A failure the log cannot count, since it does not know of the attempt, or not any more.

    Tried again, later each time, and not for ever: `attempt` is Temporal's number, handovers included.
    """
    return ApplicationError(
        short(text),
        type=type(error).__name__,
        non_retryable=attempt >= MOST_UNCOUNTED,
        next_retry_delay=pause_before_next(RunStatus(failed_in_a_row=attempt)),
        category=ApplicationErrorCategory.BENIGN,
    )


def drained(reason: str) -> ApplicationError:
    """Another worker is to go on at once."""
    return ApplicationError(
        f"{reason}; another worker goes on.",
        type=DRAINED,
        next_retry_delay=timedelta(milliseconds=100),
        category=ApplicationErrorCategory.BENIGN,
    )


def refused(error: AgentRunnerError) -> ApplicationError:
    """The control plane does not take this worker for a runner; another one may have the right key."""
    return ApplicationError(
        short(str(error)),
        type=type(error).__name__,
        next_retry_delay=timedelta(seconds=2),
        category=ApplicationErrorCategory.BENIGN,
    )


def taken_away() -> ApplicationError:
    """Temporal has ended the attempt without being asked to cancel; whoever goes on, it is not this one."""
    return ApplicationError(
        "Temporal has taken the execution away from the worker.",
        type="TakenAway",
        category=ApplicationErrorCategory.BENIGN,
    )


@contextmanager
def retry_contract() -> Iterator[None]:
    """Our errors leave the block as ApplicationError: tried again if and only if they are `retryable`."""
    try:
        yield
    except AgentRunnerError as error:
        log.info("activity failed", error=str(error), retryable=error.retryable)
        raise as_failure(error) from None
