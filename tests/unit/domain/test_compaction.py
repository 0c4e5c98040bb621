"""Compacted logs tell the same as whole ones, from wherever they are read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from unit.services.fakes.resources import COMPLETED, FAILED, called, calls, goes_on, has_said, says

from agent_runner.domain.compaction import compact
from agent_runner.domain.status import fold
from agent_runner.v1.events_pb2 import (
    AttemptStarted,
    ExecutionEvent,
    ToolCallFailed,
    ToolCallOutput,
    WarningRaised,
)
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus

_NAMES = st.sampled_from(["a", "b", "c"])
_TEXTS = st.text(st.characters(codec="ascii"), max_size=3)


def _attempt(number: int) -> ExecutionEvent:
    return ExecutionEvent(attempt=number, attempt_started=AttemptStarted())


def _output(call_id: str, text: str) -> ExecutionEvent:
    return ExecutionEvent(tool_call_output=ToolCallOutput(tool_call_id=call_id, text=text))


def _failed(call_id: str, interrupted: bool) -> ExecutionEvent:
    return ExecutionEvent(
        tool_call_failed=ToolCallFailed(tool_call_id=call_id, error="no", interrupted=interrupted)
    )


def _whole(message_id: str, text: str) -> ExecutionEvent:
    event = has_said(message_id)
    event.message_completed.content = text
    return event


_EVENTS = st.one_of(
    st.builds(says, _NAMES, _TEXTS),
    st.builds(goes_on, _NAMES, _TEXTS),
    st.builds(goes_on, _NAMES, _TEXTS),
    st.builds(has_said, _NAMES),
    st.builds(_whole, _NAMES, _TEXTS),
    st.builds(calls, _NAMES),
    st.builds(_output, _NAMES, _TEXTS),
    st.builds(called, _NAMES, _TEXTS),
    st.builds(_failed, _NAMES, st.booleans()),
    st.builds(_attempt, st.integers(1, 3)),
    st.just(ExecutionEvent(warning_raised=WarningRaised(text="mind"))),
)


def _numbered(events: list[ExecutionEvent]) -> list[ExecutionEvent]:
    log = []
    for seq, event in enumerate(events, start=1):
        copy = ExecutionEvent()
        copy.CopyFrom(event)
        copy.seq, copy.time = seq, f"t{seq}"
        log.append(copy)
    return log


@given(st.lists(_EVENTS, max_size=40), st.sampled_from([COMPLETED, FAILED]), st.integers(0, 41))
def test_whoever_goes_on_from_anywhere_comes_to_the_same_status(
    events: list[ExecutionEvent], end: ExecutionEvent, read: int
) -> None:
    log = _numbered([*events, end])
    left = compact(_numbered([*events, end]))

    seen = fold(AgentExecutionStatus(), log[:read])
    assert fold(seen, [event for event in left if event.seq > read]) == fold(AgentExecutionStatus(), log)
    assert [event.seq for event in left] == sorted({event.seq for event in left})
    assert left[-1].seq == log[-1].seq
    assert [event.seq for event in compact(left)] == [event.seq for event in left]


def test_pieces_of_a_message_go_into_its_end() -> None:
    pieces = [goes_on("a", f"word {number} ") for number in range(500)]
    left = compact(_numbered([says("a"), *pieces, has_said("a"), COMPLETED]))

    assert [event.seq for event in left] == [1, 502, 503]
    assert left[1].message_completed.content.startswith("word 0 word 1 ")


def test_a_very_long_message_keeps_its_pieces() -> None:
    said = [says("m"), *(goes_on("m", "word " * 1_000) for _ in range(200)), has_said("m")]
    for number, event in enumerate(said, start=1):
        event.seq = number
    assert [event.seq for event in compact(copies(said))] == list(range(1, 203))
    assert [event.seq for event in compact(copies(said[:50] + said[-1:]))] == [1, 202]


def copies(events: list[ExecutionEvent]) -> list[ExecutionEvent]:
    return [ExecutionEvent.FromString(event.SerializeToString()) for event in events]
