from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk

from agent_runner.adapters.agents.answers import UNREADABLE, ArgumentWatch, repair, unreadable_error


def seen(*pieces: tuple[str | None, str | None, int | None]) -> dict[str, str]:
    """Unreadable calls after pieces of (id, arguments, index)."""
    watch = ArgumentWatch()
    for call_id, args, index in pieces:
        call = tool_call_chunk(name="f", args=args, id=call_id, index=index)
        watch.take("m", AIMessageChunk("", tool_call_chunks=[call]))
    watch.end("m")
    return watch.unreadable


@pytest.mark.parametrize(
    ("pieces", "unreadable"),
    [
        ([("a", "", 0), (None, '{"x"', 0), (None, ": 1}", 0)], {}),
        ([("a", "", 0)], {}),
        ([("a", None, 0)], {}),
        ([("a", "", 0), (None, '{"x": "ha', 0)], {"a": '{"x": "ha'}),
        ([("a", '{"x": 1}', None), ("b", "[1]", None)], {"b": "[1]"}),
        ([("a", "{}", 0), ("b", '{"y', 1), (None, '": 2}', 1)], {}),
    ],
)
def test_arguments_are_watched_until_they_are_whole(pieces: Any, unreadable: dict[str, str]) -> None:
    assert seen(*pieces) == unreadable


def test_a_message_begun_anew_forgets_what_came_before() -> None:
    watch = ArgumentWatch()
    for args in ('{"x', "{}"):
        call = tool_call_chunk(name="f", args=args, id="a", index=0)
        watch.take("m", AIMessageChunk("", tool_call_chunks=[call]))
        watch.end("m")
    assert watch.unreadable == {}


def call(name: str, call_id: str | None) -> Any:
    return {"name": name, "args": {"x": 1}, "id": call_id, "type": "tool_call"}


def test_calls_get_ids_of_their_own() -> None:
    message = AIMessage(
        "", tool_calls=[call("f", "old"), call("f", "same"), call("g", "same"), call("g", None)]
    )
    repair(message, "msg-1", {"old"}.__contains__, {})
    assert [c["id"] for c in message.tool_calls] == ["msg-1-1", "same", "msg-1-3", "msg-1-4"]
    assert message.id == "msg-1"


def test_the_block_a_call_came_from_follows_its_id() -> None:
    block = {"type": "tool_use", "id": "old", "name": "f", "input": {"x": 1}}
    message = AIMessage([block], tool_calls=[call("f", "old")])
    repair(message, "m", {"old"}.__contains__, {})
    assert message.content == [{**block, "id": "m-1"}]


def test_calls_that_cannot_be_read_become_calls_that_say_so() -> None:
    invalid: Any = {"name": "g", "args": "garbage", "id": "b", "error": None, "type": "invalid_tool_call"}
    message = AIMessage("", tool_calls=[call("f", "a")], invalid_tool_calls=[invalid])
    repair(message, "m", lambda _: False, {"a": '{"x": 1'})
    assert [c["args"] for c in message.tool_calls] == [{UNREADABLE: '{"x": 1'}, {UNREADABLE: "garbage"}]
    assert message.invalid_tool_calls == []
    assert "garbage" in (unreadable_error(message.tool_calls[1]["args"]) or "")
    assert unreadable_error({"x": 1}) is None
