from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runner.domain.status import INTERRUPTED, StatusFold, apply, fold, merge_status
from agent_runner.v1 import events_pb2 as ev
from agent_runner.v1.status_pb2 import Usage
from ai.stigmer.agentic.agentexecution.v1 import api_pb2, enum_pb2

EMPTY = api_pb2.AgentExecutionStatus()


def events(*parts: dict[str, Any]) -> list[ev.ExecutionEvent]:
    return [
        ev.ExecutionEvent(seq=seq, time=f"2026-01-01T00:00:{seq:02d}.000000Z", **part)
        for seq, part in enumerate(parts, 1)
    ]


def started(message_id: str, **rest: Any) -> dict[str, Any]:
    return {"message_started": ev.MessageStarted(message_id=message_id, type="MESSAGE_AI"), **rest}


def delta(message_id: str, text: str) -> dict[str, Any]:
    return {"message_delta": ev.MessageDelta(message_id=message_id, text=text)}


def done(message_id: str) -> dict[str, Any]:
    return {"message_completed": ev.MessageCompleted(message_id=message_id)}


def call(call_id: str, message_id: str, **args: Any) -> dict[str, Any]:
    event = ev.ToolCallStarted(tool_call_id=call_id, name="execute", message_id=message_id)
    event.args.update(args)
    return {"tool_call_started": event}


def phase(name: str, error: str = "") -> dict[str, Any]:
    return {"phase_changed": ev.PhaseChanged(phase=name, error=error)}


def test_text_before_and_after_a_tool_call_is_kept_apart() -> None:
    status = fold(
        EMPTY,
        events(
            started("a"),
            delta("a", "before"),
            done("a"),
            call("c1", "a"),
            {"tool_call_completed": ev.ToolCallCompleted(tool_call_id="c1", result="ok")},
            started("b"),
            delta("b", "af"),
            delta("b", "ter"),
            done("b"),
        ),
    )

    assert [(m.content, m.streaming) for m in status.messages] == [("before", False), ("after", False)]
    assert [c.result for c in status.messages[0].tool_calls] == ["ok"]
    assert status.tool_calls[0] == status.messages[0].tool_calls[0]


def test_identical_calls_are_kept_apart() -> None:
    status = fold(
        EMPTY,
        events(
            started("a"),
            done("a"),
            call("c1", "a", command="date"),
            call("c2", "a", command="date"),
            {"tool_call_completed": ev.ToolCallCompleted(tool_call_id="c2", result="2")},
            {"tool_call_failed": ev.ToolCallFailed(tool_call_id="c1", error="boom")},
        ),
    )

    assert [(c.id, c.result, c.error) for c in status.tool_calls] == [("c1", "", "boom"), ("c2", "2", "")]
    assert [c.status for c in status.tool_calls] == [enum_pb2.TOOL_CALL_FAILED, enum_pb2.TOOL_CALL_COMPLETED]


def test_a_new_attempt_withdraws_what_was_half_streamed_and_marks_running_calls() -> None:
    status = fold(
        EMPTY,
        events(
            started("a"),
            done("a"),
            call("c1", "a"),
            started("half"),
            delta("half", "lost"),
            {"attempt_started": ev.AttemptStarted(worker="w"), "attempt": 2},
        ),
    )

    assert [m.id for m in status.messages] == ["a"]
    assert (status.tool_calls[0].status, status.tool_calls[0].error) == (
        enum_pb2.TOOL_CALL_FAILED,
        INTERRUPTED,
    )
    assert status.run.attempt == 2


def test_a_call_begun_again_shows_once() -> None:
    again = events(started("a"), done("a"), call("c1", "a"), {"attempt_started": ev.AttemptStarted()})
    status = fold(EMPTY, [*again, *events(call("c1", "a"))])

    assert [c.status for c in status.tool_calls] == [enum_pb2.TOOL_CALL_RUNNING]
    assert not status.tool_calls[0].error


@pytest.mark.parametrize("last", ["EXECUTION_COMPLETED", "EXECUTION_FAILED", "EXECUTION_CANCELLED"])
def test_a_terminal_phase_is_final_and_leaves_nothing_running(last: str) -> None:
    status = fold(
        EMPTY,
        events(
            phase("EXECUTION_PENDING"),
            phase("EXECUTION_IN_PROGRESS"),
            started("a"),
            call("c1", "a"),
            {"sub_agent_started": ev.SubAgentStarted(id="s", name="helper")},
            phase(last, "why"),
            phase("EXECUTION_IN_PROGRESS"),
            delta("a", "late"),
        ),
    )

    assert enum_pb2.ExecutionPhase.Name(status.phase) == last
    assert status.started_at.endswith("02.000000Z") and status.completed_at.endswith("06.000000Z")
    assert status.error == "why" and status.run.last_seq == 8
    assert not status.messages[0].streaming and status.messages[0].content == ""
    assert status.tool_calls[0].status == enum_pb2.TOOL_CALL_FAILED
    assert status.sub_agent_executions[0].status == enum_pb2.SUB_AGENT_FAILED


def test_a_sub_agents_messages_and_calls_are_its_own() -> None:
    status = fold(
        EMPTY,
        events(
            started("a"),
            done("a"),
            {"sub_agent_started": ev.SubAgentStarted(id="s", name="helper", input="look")},
            started("inner", sub_agent_id="s"),
            {**call("c1", "inner"), "sub_agent_id": "s"},
            {"sub_agent_completed": ev.SubAgentCompleted(id="s", output="found")},
        ),
    )

    [sub_agent] = status.sub_agent_executions
    assert [m.id for m in status.messages] == ["a"]
    assert [m.id for m in sub_agent.messages] == ["inner"]
    assert sub_agent.messages[0].tool_calls[0].id == "c1"
    assert status.tool_calls[0].sub_agent_id == "s"
    assert status.tool_calls[0].component_metadata.component_group == "sub-agent-tools"
    assert (sub_agent.output, sub_agent.status) == ("found", enum_pb2.SUB_AGENT_COMPLETED)


def test_todos_keep_the_time_they_were_made_and_lose_what_is_gone() -> None:
    one = api_pb2.TodoItem(id="1", content="plan", status="TODO_PENDING")
    two = api_pb2.TodoItem(id="2", content="act", status="TODO_PENDING")
    ticked = api_pb2.TodoItem(id="1", content="plan", status="TODO_COMPLETED")
    status = fold(
        EMPTY,
        events(
            {"todos_changed": ev.TodosChanged(todos=[one, two])},
            {"todos_changed": ev.TodosChanged(todos=[ticked])},
        ),
    )

    assert set(status.todos) == {"1"}
    assert status.todos["1"].created_at.endswith("01.000000Z")
    assert status.todos["1"].updated_at.endswith("02.000000Z")


def test_usage_adds_up_and_shows_at_its_message() -> None:
    usage = Usage(input_tokens=10, output_tokens=5, cached_input_tokens=3, model_calls=1)
    status = fold(
        EMPTY,
        events(
            started("a"),
            {"usage_reported": ev.UsageReported(usage=usage, message_id="a")},
            {"usage_reported": ev.UsageReported(usage=usage)},
        ),
    )

    assert (status.run.usage.input_tokens, status.run.usage.model_calls) == (20, 2)
    assert status.messages[0].metadata["usage"]["output_tokens"] == 5


def test_merging_never_clears_and_ignores_what_is_not_the_runners() -> None:
    status = api_pb2.AgentExecutionStatus(error="kept", callback_token=b"mine")
    status.messages.add(content="old")
    merge_status(status, api_pb2.AgentExecutionStatus(callback_token=b"theirs"))
    assert (status.error, status.callback_token, len(status.messages)) == ("kept", b"mine", 1)

    merge_status(status, api_pb2.AgentExecutionStatus(messages=[api_pb2.AgentMessage(content="new")] * 2))
    assert [m.content for m in status.messages] == ["new", "new"]


def test_folding_leaves_its_input_alone() -> None:
    fold(EMPTY, events(started("a"), phase("EXECUTION_IN_PROGRESS")))
    assert api_pb2.AgentExecutionStatus() == EMPTY


STEP = st.one_of(
    st.builds(started, st.sampled_from("ab")),
    st.builds(delta, st.sampled_from("ab"), st.text(max_size=4)),
    st.builds(done, st.sampled_from("ab")),
    st.builds(call, st.sampled_from(["c1", "c2"]), st.sampled_from("ab")),
    st.just({"attempt_started": ev.AttemptStarted()}),
    st.just({"attempt_started": ev.AttemptStarted(lost_before=True)}),
    st.just({"attempt_ended": ev.AttemptEnded(how=ev.ATTEMPT_END_FAILED)}),
    st.sampled_from(["EXECUTION_IN_PROGRESS", "EXECUTION_COMPLETED"]).map(phase),
)


@given(st.lists(STEP, max_size=30), st.integers(0, 30))
def test_folding_in_two_parts_gives_the_same_as_in_one(steps: list[dict[str, Any]], cut: int) -> None:
    whole = events(*steps)
    assert fold(fold(EMPTY, whole[:cut]), whole[cut:]) == fold(EMPTY, whole)


@given(st.lists(STEP, max_size=30))
def test_one_by_one_is_the_same_as_all_at_once(steps: list[dict[str, Any]]) -> None:
    status = api_pb2.AgentExecutionStatus()
    for event in events(*steps):
        apply(status, event)
    assert status == fold(EMPTY, events(*steps))


def test_a_long_message_is_joined_once() -> None:
    folding = StatusFold()
    for event in events(started("a"), *[delta("a", "x") for _ in range(5000)]):
        folding.apply(event)
    assert len(folding.status.messages[0].content) == 5000


def test_why_somebody_cancelled_is_kept_and_why_somebody_paused_until_it_goes_on() -> None:
    paused = events({"pause_requested": ev.PauseRequested(reason="lunch")}, {"paused": ev.Paused()})
    assert fold(EMPTY, paused).run.pause_reason == "lunch"

    resumed = fold(EMPTY, [*paused, ev.ExecutionEvent(resumed=ev.Resumed())])
    assert (resumed.run.paused, resumed.run.pause_reason) == (False, "")

    cancelled = {"cancel_requested": ev.CancelRequested(reason="too slow")}
    ended = fold(EMPTY, [*paused, *events(cancelled, phase("EXECUTION_CANCELLED", "It was cancelled."))])
    assert (ended.error, ended.run.cancel_reason, ended.run.pause_reason) == (
        "It was cancelled.",
        "too slow",
        "",
    )
