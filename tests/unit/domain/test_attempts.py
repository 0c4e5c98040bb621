"""What counts against an execution, and what does not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from agent_runner.domain.attempts import AttemptLimits, pause_before_next, was_last, why_over
from agent_runner.domain.status import fold
from agent_runner.v1 import events_pb2 as ev
from agent_runner.v1.status_pb2 import RunStatus
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import MESSAGE_AI, MESSAGE_HUMAN

LIMITS = AttemptLimits(failed=3, lost=2, broken=6)
TAKEN: dict[str, Any] = {"attempt_started": ev.AttemptStarted()}
TAKEN_FROM_A_LOST_ONE: dict[str, Any] = {"attempt_started": ev.AttemptStarted(lost_before=True)}
FAILED: dict[str, Any] = {"attempt_ended": ev.AttemptEnded(how=ev.ATTEMPT_END_FAILED)}
HANDED_OVER: dict[str, Any] = {"attempt_ended": ev.AttemptEnded(how=ev.ATTEMPT_END_HANDED_OVER)}


def run_after(*events: dict[str, Any]) -> RunStatus:
    return fold(AgentExecutionStatus(), [ev.ExecutionEvent(**event) for event in events]).run


def said(kind: Any, whole: bool = True) -> list[dict[str, Any]]:
    begun: dict[str, Any] = {"message_started": ev.MessageStarted(message_id="m", type=kind)}
    return [begun, {"message_completed": ev.MessageCompleted(message_id="m")}] if whole else [begun]


def test_handing_over_counts_nowhere() -> None:
    run = run_after(*[TAKEN, HANDED_OVER] * 100)

    assert not was_last(run, LIMITS)
    assert (run.held, run.failed_in_a_row, run.lost_in_a_row, run.broken_attempts) == (False, 0, 0, 0)


def test_failures_in_a_row_come_to_an_end_after_longer_and_longer_pauses() -> None:
    pauses = []
    for count in range(1, 20):
        run = run_after(*[TAKEN, FAILED] * count)
        assert was_last(run, AttemptLimits(failed=20)) is (count == 19)
        pauses.append(pause_before_next(run))

    assert pauses[:4] == [timedelta(milliseconds=200 * n) for n in (1, 2, 4, 8)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == timedelta(seconds=30)


def test_lost_workers_in_a_row_come_to_an_end() -> None:
    assert why_over(run_after(TAKEN), LIMITS) is None
    problem = why_over(run_after(TAKEN, TAKEN_FROM_A_LOST_ONE), LIMITS)
    assert problem is not None
    assert "stopped answering 2 times in a row" in problem


@pytest.mark.parametrize(
    "step",
    [
        said(MESSAGE_AI),
        [{"tool_call_completed": ev.ToolCallCompleted(tool_call_id="c")}],
        [{"tool_call_failed": ev.ToolCallFailed(tool_call_id="c")}],
    ],
)
def test_with_each_step_the_counting_begins_anew(step: list[dict[str, Any]]) -> None:
    run = run_after(TAKEN, FAILED, TAKEN, FAILED, TAKEN, TAKEN_FROM_A_LOST_ONE, *step)

    assert not was_last(run, LIMITS)
    assert why_over(run, LIMITS) is None
    assert pause_before_next(run) == timedelta(milliseconds=200)


@pytest.mark.parametrize(
    "no_step",
    [
        said(MESSAGE_AI, whole=False),
        said(MESSAGE_HUMAN),
        [{"tool_call_failed": ev.ToolCallFailed(tool_call_id="c", interrupted=True)}],
    ],
)
def test_what_is_not_a_step_of_the_agent_changes_no_count(no_step: list[dict[str, Any]]) -> None:
    run = run_after(TAKEN, FAILED, TAKEN, FAILED, TAKEN, TAKEN_FROM_A_LOST_ONE, *no_step)

    assert was_last(run, LIMITS)
    assert why_over(run, LIMITS) is not None


def test_what_breaks_after_a_step_each_time_ends_too() -> None:
    rounds = [TAKEN_FROM_A_LOST_ONE, *said(MESSAGE_AI)]

    assert why_over(run_after(TAKEN, *rounds * 4), LIMITS) is None
    assert "6 attempts" in str(why_over(run_after(TAKEN, *rounds * 5), LIMITS))
    assert was_last(run_after(TAKEN, *rounds * 5), LIMITS)


def test_an_execution_that_is_paused_or_over_is_held_by_nobody() -> None:
    assert run_after(TAKEN).held
    assert not run_after(TAKEN, {"pause_requested": ev.PauseRequested()}, {"paused": ev.Paused()}).held
    ended: dict[str, Any] = {"phase_changed": ev.PhaseChanged(phase="EXECUTION_COMPLETED")}
    assert not run_after(TAKEN, ended).held
