"""The rules for reading the engine's stream, on streams the engine really gave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from agent_runner.adapters.agents import signals
from agent_runner.adapters.agents.normalizer import Normalizer
from agent_runner.domain.status import StatusFold
from agent_runner.v1.events_pb2 import ExecutionEvent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import TOOL_CALL_COMPLETED, TOOL_CALL_FAILED

EMPTY: dict[str, Any] = {
    "id": None,
    "content": "",
    "usage_metadata": None,
    "tool_calls": [],
    "tool_call_chunks": [],
    "chunk_position": None,
    "status": "",
}
STREAMS = Path(__file__).parents[2] / "data" / "streams"


def revived(data: Any) -> Any:
    """Messages and signals as objects again."""
    if isinstance(data, list):
        return [revived(value) for value in data]
    if not isinstance(data, Mapping):
        return data
    if "signal" in data:
        fields = {key: value for key, value in data.items() if key != "signal"}
        return getattr(signals, data["signal"])(**fields)
    fields = {key: revived(value) for key, value in data.items()}
    if data.get("type") in ("ai", "human", "tool", "AIMessageChunk"):
        return SimpleNamespace(**{**EMPTY, **fields})
    return fields


def events_of(name: str) -> list[ExecutionEvent]:
    normalizer = Normalizer({"helper", "general-purpose"}, lambda usage: usage.output_tokens / 1000)
    events: list[ExecutionEvent] = []
    for namespace, mode, data in json.loads((STREAMS / f"{name}.json").read_text())["items"]:
        if mode == "journal":
            events.append(ParseDict(data, ExecutionEvent()))
        else:
            events += normalizer.events(tuple(namespace), mode, revived(data))
    return events


def status_of(events: list[ExecutionEvent]) -> AgentExecutionStatus:
    folding = StatusFold(AgentExecutionStatus())
    for event in events:
        folding.apply(event)
    return folding.status


def kinds(events: list[ExecutionEvent]) -> list[str]:
    return [str(event.WhichOneof("event")) for event in events]


def test_thinking_is_no_text() -> None:
    events = events_of("plain")
    assert kinds(events)[0] == "message_started"
    assert kinds(events)[-2:] == ["message_completed", "usage_reported"]
    assert "".join(e.message_delta.text for e in events) == "The answer is forty two"
    assert status_of(events).messages[0].content == "The answer is forty two"


def test_todos_come_whole_with_ids() -> None:
    changes = [e.todos_changed for e in events_of("todos") if e.HasField("todos_changed")]
    assert [[t.id for t in change.todos] for change in changes] == [["1", "2"], ["1"]]


def test_each_step_is_a_message_of_its_own_with_its_calls() -> None:
    status = status_of(events_of("files"))
    assert [m.content for m in status.messages] == ["I write it", "and look", "done"]
    assert [[c.name for c in m.tool_calls] for m in status.messages] == [
        ["write_file"],
        ["read_file", "read_file"],
        [],
    ]
    assert [c.status for c in status.tool_calls] == [
        TOOL_CALL_COMPLETED,
        TOOL_CALL_COMPLETED,
        TOOL_CALL_FAILED,
    ]


def test_a_message_is_whole_before_its_calls_begin() -> None:
    for name in ("files", "execute", "errors", "sub-agents"):
        completed: set[str] = set()
        for event in events_of(name):
            if event.HasField("message_completed"):
                completed.add(event.message_completed.message_id)
            if event.HasField("tool_call_started"):
                assert event.tool_call_started.message_id in completed


def test_identical_commands_keep_their_own_output() -> None:
    events = events_of("execute")
    outputs: dict[str, str] = {}
    for event in events:
        if event.HasField("tool_call_output"):
            output = event.tool_call_output
            outputs[output.tool_call_id] = outputs.get(output.tool_call_id, "") + output.text
    assert len(outputs) == 2
    assert set(outputs.values()) == {"same\n"}


def test_mistaken_calls_make_no_sub_agent() -> None:
    status = status_of(events_of("errors"))
    assert not status.sub_agent_executions
    by_name = {call.name: call.status for call in status.tool_calls}
    assert by_name["no_such_tool"] == TOOL_CALL_FAILED
    assert by_name["ls"] == TOOL_CALL_FAILED


def test_what_happens_in_a_sub_agent_is_the_sub_agents() -> None:
    events = events_of("sub-agents")
    status = status_of(events)
    assert [m.content for m in status.messages] == ["both", "all done"]
    assert [(s.input, s.output) for s in status.sub_agent_executions] == [
        ("one", "finished one"),
        ("two", "finished two"),
    ]
    for sub_agent in status.sub_agent_executions:
        assert [m.content for m in sub_agent.messages] == [
            f"working on {sub_agent.input}",
            f"finished {sub_agent.input}",
        ]
        assert sub_agent.id in {c.id for c in status.tool_calls if c.name == "task"}
    assert status.run.usage.model_calls == 6
    assert status.run.usage.cost_usd == pytest.approx(status.run.usage.output_tokens / 1000)


def test_a_call_tried_again_begins_its_message_anew() -> None:
    events = events_of("retry")
    started = [e.message_started.message_id for e in events if e.HasField("message_started")]
    assert len(started) == 2
    assert len(set(started)) == 1
    assert status_of(events).messages[0].content == "one two three four five"
    assert status_of(events).run.warnings


def test_deltas_add_up_to_what_is_completed() -> None:
    for path in STREAMS.glob("*.json"):
        text: dict[str, str] = {}
        for event in events_of(path.stem):
            if event.HasField("message_started"):
                text[event.message_started.message_id] = ""
            elif event.HasField("message_delta"):
                text[event.message_delta.message_id] += event.message_delta.text
            elif event.HasField("message_completed"):
                whole = text[event.message_completed.message_id] or event.message_completed.content
                # Text that was streamed whole is not told a second time.
                assert event.message_completed.content in ("", whole)


def test_the_engines_own_calls_are_counted_but_not_shown() -> None:
    chunk = SimpleNamespace(
        type="AIMessageChunk",
        id="r",
        content="summary",
        usage_metadata={"input_tokens": 5, "output_tokens": 2, "input_token_details": {"cache_read": 3}},
    )
    metadata = {"langgraph_node": "model", "langgraph_checkpoint_ns": "model:1", "lc_source": "summarization"}
    events = list(Normalizer(()).events((), "messages", (chunk, metadata)))
    assert kinds(events) == ["usage_reported"]
    assert events[0].usage_reported.usage.cached_input_tokens == 3


def test_an_answer_that_was_not_streamed_is_told_whole() -> None:
    answer = SimpleNamespace(
        type="ai", id="x", content=[{"type": "text", "text": "whole"}], usage_metadata=None
    )
    task = {"id": "t1", "name": "model", "error": None, "result": {"messages": [answer]}}
    events = list(Normalizer(()).events((), "tasks", task))
    assert kinds(events) == ["message_started", "message_completed", "usage_reported"]
    assert events[1].message_completed.content == "whole"


def test_several_writes_of_one_step_are_unwrapped() -> None:
    answer = SimpleNamespace(type="ai", id="x", content="hi", usage_metadata=None)
    removed = SimpleNamespace(type="remove", id="y", content="")
    writes = {"$writes": [[removed, answer], {"other": 1}]}
    task = {"id": "t1", "name": "model", "error": None, "result": {"messages": writes}}
    events = list(Normalizer(()).events((), "tasks", task))
    assert kinds(events) == ["message_started", "message_completed", "usage_reported"]
