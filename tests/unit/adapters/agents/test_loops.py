from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from agent_runner.adapters.agents.loops import Loop, find_loop


def conversation(*steps: str) -> list[Any]:
    """One message, then a step per text: `name` or `name=result`; `+` joins calls of one message."""
    messages: list[Any] = [HumanMessage("go")]
    for number, step in enumerate(steps):
        calls = [call.partition("=") for call in step.split("+")]
        ids = [f"{number}-{place}" for place in range(len(calls))]
        asked = [
            {"name": name, "args": {"x": 1}, "id": call_id}
            for (name, _, _), call_id in zip(calls, ids, strict=True)
        ]
        messages.append(AIMessage("", tool_calls=asked))
        messages += [
            ToolMessage(result or "same", tool_call_id=call_id)
            for (_, _, result), call_id in zip(calls, ids, strict=True)
        ]
    return messages


@pytest.mark.parametrize(
    ("steps", "loop"),
    [
        ("", None),
        ("A A", None),
        ("A A A", Loop(1, 3)),
        ("B A A A A", Loop(1, 4)),
        ("A B A B", Loop(2, 2)),
        ("A B A B A", Loop(2, 2)),
        ("A B C A B C", None),
        ("A B C A B C A B C", Loop(3, 3)),
        ("A=1 A=2 A=3 A=4", None),
        ("A+A+A", None),
        ("A+B A+B A+B", Loop(1, 3)),
        ("A A A B", None),
    ],
)
def test_circles_are_found(steps: str, loop: Loop | None) -> None:
    assert find_loop(conversation(*steps.split())) == loop


def test_only_this_turn_counts() -> None:
    messages = [*conversation("A", "A", "A"), HumanMessage("again")]
    assert find_loop(messages) is None


@pytest.mark.parametrize(
    ("steps", "stops"), [("A " * 5, False), ("A " * 6, True), ("A B " * 3, False), ("A B " * 4, True)]
)
def test_a_circle_that_goes_on_is_stopped(steps: str, stops: bool) -> None:
    loop = find_loop(conversation(*steps.split()))
    assert loop is not None
    assert loop.to_be_stopped is stops
