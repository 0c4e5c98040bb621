"""Events on their way out: joined, cut, in order, whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent_runner.adapters.status.outbox import MOST_BATCH_BYTES, Outbox
from agent_runner.domain.status import fold
from agent_runner.v1.events_pb2 import (
    ExecutionEvent,
    MessageCompleted,
    MessageDelta,
    MessageStarted,
    ToolCallOutput,
    ToolCallStarted,
    WarningRaised,
)
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import MESSAGE_AI

NAMES = st.sampled_from(["a", "b", "c"])
EVENTS = st.one_of(
    st.builds(lambda n: ExecutionEvent(message_started=MessageStarted(message_id=n, type=MESSAGE_AI)), NAMES),
    st.builds(
        lambda n, t: ExecutionEvent(message_delta=MessageDelta(message_id=n, text=t)), NAMES, st.text()
    ),
    st.builds(lambda n: ExecutionEvent(message_completed=MessageCompleted(message_id=n)), NAMES),
    st.builds(lambda n: ExecutionEvent(tool_call_started=ToolCallStarted(tool_call_id=n, name="ls")), NAMES),
    st.builds(
        lambda n, t: ExecutionEvent(tool_call_output=ToolCallOutput(tool_call_id=n, text=t)),
        NAMES,
        st.text(),
    ),
    st.builds(lambda t: ExecutionEvent(warning_raised=WarningRaised(text=t)), st.text(min_size=1)),
)


@given(st.lists(st.tuples(EVENTS, st.booleans()), max_size=60))
def test_joined_events_fold_to_the_same_status(steps: list[tuple[ExecutionEvent, bool]]) -> None:
    outbox, sent, stored = Outbox(), [], 0
    originals = []
    for event, leave in steps:
        copy = ExecutionEvent()
        copy.CopyFrom(event)
        originals.append(copy)
        stored = outbox.put(event)
        if leave:
            sent += outbox.take()
    while outbox:
        sent += outbox.take(7)
    assert len(sent) == stored
    empty = AgentExecutionStatus()
    assert fold(empty, sent) == fold(empty, originals)


def delta(text: str, name: str = "a") -> ExecutionEvent:
    return ExecutionEvent(message_delta=MessageDelta(message_id=name, text=text))


def test_a_million_tokens_of_parallel_messages_wait_in_a_few_events() -> None:
    outbox = Outbox()
    for number in range(100_000):
        outbox.put(delta("0123456789", str(number % 10)))
    batches = []
    while outbox:
        batches.append(outbox.take())
    assert sum(len(batch) for batch in batches) <= 20
    assert sum(len(e.message_delta.text) for batch in batches for e in batch) == 1_000_000
    assert all(sum(e.ByteSize() for e in batch) <= MOST_BATCH_BYTES for batch in batches)


def test_endless_output_of_a_tool_keeps_its_end() -> None:
    outbox = Outbox()
    for number in range(100_000):
        outbox.put(ExecutionEvent(tool_call_output=ToolCallOutput(tool_call_id="a", text=f"{number}\n")))
    (event,) = outbox.take()
    assert event.tool_call_output.text.endswith("99998\n99999\n")
    assert len(event.tool_call_output.text) <= 128 << 10


def test_what_waits_can_be_looked_at_and_still_leaves_once() -> None:
    outbox = Outbox()
    outbox.put(delta("one "))
    assert [event.message_delta.text for event in outbox.peek()] == ["one "]
    outbox.put(delta("two"))
    assert [event.message_delta.text for event in outbox.take()] == ["one ", "two"]
    assert not outbox
