"""Our errors as Temporal's: which are tried again, and what people read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from temporalio.exceptions import ApplicationError

from agent_runner.errors import AgentRunnerError

DRAINED = "Drained"
_MOST_TEXT = 2000


def short(text: str, most: int = _MOST_TEXT) -> str:
    """Text cut to a length that history and a status can carry."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def as_failure(error: AgentRunnerError, *, retryable: bool | None = None) -> ApplicationError:
    """The error as Temporal takes it; its type is the name of ours."""
    again = error.retryable if retryable is None else retryable
    return ApplicationError(short(str(error)), type=type(error).__name__, non_retryable=not again)


def drained(reason: str) -> ApplicationError:
    """Another worker is to go on at once."""
    return ApplicationError(
        f"{reason}; another worker goes on.", type=DRAINED, next_retry_delay=timedelta(milliseconds=100)
    )


@contextmanager
def retry_contract() -> Iterator[None]:
    """Our errors leave the block as ApplicationError: tried again if and only if they are `retryable`."""
    try:
        yield
    except AgentRunnerError as error:
        raise as_failure(error) from error
