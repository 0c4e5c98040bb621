"""How an attempt ends that the log does not know of."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from agent_runner.errors import FencedError, NotFoundError
from agent_runner.ports.status_sinks import AttemptOf
from agent_runner.runner.activities.graphton import ExecutionActivities
from agent_runner.runner.attempts import Attempt, Parts
from agent_runner.runner.failures import MOST_UNCOUNTED
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution


class Failing:
    def __init__(self, error: Exception) -> None:
        self._error = error

    async def open(self, attempt: AttemptOf) -> Any:
        raise self._error


async def failure_of(error: Exception, attempt: int) -> ApplicationError:
    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(environment.info, attempt=attempt)
    unused: Any = None
    parts = Parts(Failing(error), unused, unused, unused, unused)  # type: ignore[arg-type]
    with pytest.raises(ApplicationError) as failed:
        await environment.run(ExecutionActivities(parts).execute, AgentExecution(), "thread-1")
    return failed.value


@pytest.mark.parametrize("error", [RuntimeError("a bug"), FencedError("aex-1", 1, 2)])
async def test_what_nobody_counts_is_tried_again_later_each_time_and_not_for_ever(error: Exception) -> None:
    failures = [await failure_of(error, attempt) for attempt in (1, 2, MOST_UNCOUNTED)]
    assert [failure.non_retryable for failure in failures] == [False, False, True]
    first, second, last = (failure.next_retry_delay for failure in failures)
    assert first and second and last and first < second < last


async def test_an_execution_that_is_gone_is_not_tried_again() -> None:
    assert (await failure_of(NotFoundError("execution", "aex-1"), 1)).non_retryable


async def test_the_time_of_an_attempt_does_not_depend_on_the_clock_of_temporal() -> None:
    environment, unused = ActivityEnvironment(), Any
    environment.info = dataclasses.replace(
        environment.info,
        started_time=datetime.now(UTC) - timedelta(hours=2),
        start_to_close_timeout=timedelta(hours=1),
    )

    async def time_left() -> float | None:
        return Attempt(unused, AgentExecution(), "thread-1")._time_left()  # type: ignore[arg-type]

    left = await environment.run(time_left)
    assert left is not None and 3000 < left < 3600
