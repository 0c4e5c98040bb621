"""What counts against an execution, and what does not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from agent_runner.domain.attempts import AttemptLimits, pause_before_next, was_last, why_over
from agent_runner.domain.status import fold
from agent_runner.v1 import events_pb2 as ev
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import MESSAGE_AI, MESSAGE_HUMAN

LIMITS = AttemptLimits(failed=3, lost=2, broken=6)
TAKEN: dict[str, Any] = {"attempt_started": ev.AttemptStarted()}
TAKEN_FROM_A_LOST_ONE: dict[str, Any] = {"attempt_started": ev.AttemptStarted(lost_before=True)}
FAILED: dict[str, Any] = {"attempt_ended": ev.AttemptEnded(how=ev.ATTEMPT_END_FAILED)}
HANDED_OVER: dict[str, Any] = {"attempt_ended": ev.AttemptEnded(how=ev.ATTEMPT_END_HANDED_OVER)}


def after(*events: dict[str, Any]) -> AgentExecutionStatus:
    return fold(AgentExecutionStatus(), [ev.ExecutionEvent(**event) for event in events])


def said(kind: Any = MESSAGE_AI, whole: bool = True, name: str = "m") -> list[dict[str, Any]]:
    begun: dict[str, Any] = {"message_started": ev.MessageStarted(message_id=name, type=kind)}
    return [begun, {"message_completed": ev.MessageCompleted(message_id=name)}] if whole else [begun]


def called(name: str = "c", whole: bool = True) -> list[dict[str, Any]]:
    begun: dict[str, Any] = {"tool_call_started": ev.ToolCallStarted(tool_call_id=name)}
    return [begun, {"tool_call_completed": ev.ToolCallCompleted(tool_call_id=name)}] if whole else [begun]


def test_handing_over_counts_nowhere() -> None:
    status = after(*[TAKEN, HANDED_OVER] * 100)
    run = status.run

    assert not was_last(status, LIMITS)
    assert (run.held, run.failed_in_a_row, run.lost_in_a_row, run.broken_attempts) == (False, 0, 0, 0)


def test_failures_in_a_row_come_to_an_end_after_longer_and_longer_pauses() -> None:
    pauses = []
    for count in range(1, 20):
        status = after(*[TAKEN, FAILED] * count)
        assert was_last(status, AttemptLimits(failed=20)) is (count == 19)
        pauses.append(pause_before_next(status.run))

    assert pauses[:4] == [timedelta(milliseconds=200 * n) for n in (1, 2, 4, 8)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == timedelta(seconds=30)


def test_lost_workers_in_a_row_come_to_an_end() -> None:
    assert why_over(after(TAKEN), LIMITS) is None
    problem = why_over(after(TAKEN, TAKEN_FROM_A_LOST_ONE), LIMITS)
    assert problem is not None
    assert "stopped answering 2 times in a row" in problem


@pytest.mark.parametrize("step", [said(), called(), [{**event, "sub_agent_id": "s"} for event in said()]])
def test_after_a_step_the_counting_begins_anew(step: list[dict[str, Any]]) -> None:
    status = after(TAKEN, FAILED, TAKEN, FAILED, TAKEN, TAKEN_FROM_A_LOST_ONE, *step)

    assert not was_last(status, LIMITS)
    assert why_over(status, LIMITS) is None
    failed, lost = after(TAKEN, FAILED, TAKEN, *step, FAILED), after(TAKEN, *step, TAKEN_FROM_A_LOST_ONE)
    assert (failed.run.failed_in_a_row, lost.run.lost_in_a_row) == (1, 1)
    assert pause_before_next(failed.run) == timedelta(milliseconds=200)


@pytest.mark.parametrize("no_step", [said(whole=False), said(MESSAGE_HUMAN), called(whole=False)])
def test_what_is_not_a_step_of_the_agent_changes_no_count(no_step: list[dict[str, Any]]) -> None:
    status = after(TAKEN, FAILED, TAKEN, FAILED, TAKEN, TAKEN_FROM_A_LOST_ONE, *no_step)

    assert was_last(status, LIMITS)
    assert why_over(status, LIMITS) is not None


def test_what_a_resumed_attempt_says_again_is_no_step() -> None:
    status = after(TAKEN, *said(), TAKEN_FROM_A_LOST_ONE, *said(), *called(whole=False))

    assert why_over(status, LIMITS) is not None


def test_what_breaks_after_a_step_each_time_ends_too() -> None:
    def rounds(count: int) -> AgentExecutionStatus:
        return after(TAKEN, *(e for n in range(count) for e in (*said(name=f"m{n}"), TAKEN_FROM_A_LOST_ONE)))

    assert why_over(rounds(4), AttemptLimits(lost=3, broken=6)) is None
    assert "6 attempts" in str(why_over(rounds(5), AttemptLimits(lost=3, broken=6)))
    assert was_last(rounds(5), LIMITS)


def test_an_execution_that_is_paused_or_over_is_held_by_nobody() -> None:
    assert after(TAKEN).run.held
    assert not after(TAKEN, {"pause_requested": ev.PauseRequested()}, {"paused": ev.Paused()}).run.held
    ended: dict[str, Any] = {"phase_changed": ev.PhaseChanged(phase="EXECUTION_COMPLETED")}
    assert not after(TAKEN, ended).run.held
