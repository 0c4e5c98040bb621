from __future__ import annotations

from agent_runner.adapters.agents.events import (
    changed_todos,
    result_of,
    started_call,
    text_of,
    usage_from,
)
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import TODO_IN_PROGRESS, TODO_PENDING


def test_blocks_become_text_and_images_are_named() -> None:
    blocks = [
        {"type": "text", "text": "a"},
        "b",
        {"type": "image", "mime_type": "image/png", "base64": "x" * 999},
        {"type": "thinking", "thinking": "hidden"},
    ]
    assert result_of(blocks) == "ab[image/png][thinking]"
    assert text_of(blocks) == "ab"
    assert text_of(None) == ""


def test_arguments_that_are_no_json_become_text() -> None:
    args = started_call(
        "c", "f", {"a": {1, 2}.__class__, "b": [None, True, 1.5]}, "m", ""
    ).tool_call_started.args
    assert list(args["b"]) == [None, True, 1.5]
    assert "set" in args["a"]


def test_unknown_todo_states_are_pending() -> None:
    event = changed_todos([{"content": "a", "status": "in_progress"}, {"content": "b", "status": "?"}])
    assert [t.status for t in event.todos_changed.todos] == [TODO_IN_PROGRESS, TODO_PENDING]


def test_usage_without_details_counts_the_call() -> None:
    assert usage_from(None).model_calls == 1
    usage = usage_from({"input_tokens": 3, "output_tokens": None})
    assert (usage.input_tokens, usage.output_tokens, usage.cached_input_tokens) == (3, 0, 0)
