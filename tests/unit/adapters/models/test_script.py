from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage

from agent_runner.adapters.models.script import ScriptedChatModel, ScriptedFailureError, ScriptLibrary
from agent_runner.adapters.models.script_files import packaged_scripts
from agent_runner.errors import ModelError


def opened(tmp_path: Path, text: str) -> ScriptedChatModel:
    path = tmp_path / "script.yaml"
    path.write_text(text)
    return ScriptLibrary().open(str(path))


async def answer(model: ScriptedChatModel, messages: list[BaseMessage]) -> AIMessageChunk:
    whole: Any = None
    async for chunk in model.astream(messages):
        whole = chunk if whole is None else whole + chunk
    return whole


TWO_TURNS = """
turns:
  - steps:
      - text: "One: {{message}}"
        calls: [{name: execute, args: {command: "echo {{message}}", deep: [{x: "{{turn}}"}]}}]
      - "Got {{last_tool_result}}"
  - steps: ["Two, after {{previous_message}}, {{unknown}}"]
"""


async def test_turn_and_step_follow_from_the_messages(tmp_path: Path) -> None:
    model = opened(tmp_path, TWO_TURNS)
    first = await answer(model, [HumanMessage("hi")])
    assert first.text == "One: hi"
    assert first.tool_calls[0]["args"] == {"command": "echo hi", "deep": [{"x": "1"}]}
    call = first.tool_calls[0]["id"]
    rest: list[BaseMessage] = [HumanMessage("hi"), AIMessage("", tool_calls=first.tool_calls)]
    rest.append(ToolMessage("42", tool_call_id=call))
    assert (await answer(model, rest)).text == "Got 42"
    rest += [AIMessage("Got 42"), HumanMessage("more")]
    assert (await answer(model, rest)).text == "Two, after hi, {{unknown}}"
    again = await answer(model, [HumanMessage("hi")])
    assert again.tool_calls == first.tool_calls


async def test_an_answer_streams_as_a_provider_streams(tmp_path: Path) -> None:
    model = opened(tmp_path, TWO_TURNS)
    chunks = [chunk async for chunk in model.astream([HumanMessage("hi")])]
    fragments = [f for chunk in chunks for f in chunk.tool_call_chunks]
    assert (fragments[0]["name"], fragments[0]["args"]) == ("execute", "")
    assert len(fragments) > 2 and all(f["id"] is None and f["index"] == 0 for f in fragments[1:])
    assert chunks[-1].chunk_position == "last"
    assert chunks[-1].usage_metadata and chunks[-1].usage_metadata["input_tokens"] > 0
    assert [c for c in chunks if c.usage_metadata] == chunks[-1:]


async def test_turns_are_chosen_by_pattern_before_order(tmp_path: Path) -> None:
    model = opened(
        tmp_path,
        """
turns:
  - {steps: [ordered]}
  - {when: "re[sz]earch", steps: [by message]}
  - {when: {system: "sub-agent"}, steps: [by system]}
  - {when: {turn: 3}, steps: [third]}
""",
    )
    from langchain_core.messages import SystemMessage

    assert (await answer(model, [HumanMessage("x")])).text == "ordered"
    assert (await answer(model, [HumanMessage("do research")])).text == "by message"
    assert (await answer(model, [SystemMessage("a sub-agent"), HumanMessage("x")])).text == "by system"
    assert (await answer(model, [HumanMessage("x")] * 3)).text == "third"


async def test_a_loop_never_ends_and_a_turn_without_one_does(tmp_path: Path) -> None:
    model = opened(tmp_path, "turns: [{loop: true, steps: [a, b]}]")
    past: list[BaseMessage] = [HumanMessage("x"), *(AIMessage("a") for _ in range(7))]
    assert (await answer(model, past)).text == "b"
    model = opened(tmp_path, "turns: [{steps: [a]}]")
    assert "no further step" in (await answer(model, past)).text


async def test_thinking_comes_as_a_block_of_its_own(tmp_path: Path) -> None:
    model = opened(tmp_path, "turns: [{steps: [{thinking: let me see, text: yes}]}]")
    whole = await answer(model, [HumanMessage("x")])
    assert whole.text == "yes"
    assert whole.content[0] == {"type": "thinking", "thinking": "let me see", "index": 0}


async def test_a_failure_ends_after_its_times_also_for_a_new_model(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "turns: [{steps: [{text: a b c d, fail: {kind: rate_limit, times: 2, retry_after: 0.5}}]}]"
    )
    library = ScriptLibrary()
    for _ in range(2):
        with pytest.raises(ScriptedFailureError) as raised:
            await answer(library.open(str(path)), [HumanMessage("x")])
        assert (raised.value.status_code, raised.value.retry_after) == (429, 0.5)
    assert (await answer(library.open(str(path)), [HumanMessage("x")])).text == "a b c d"
    with pytest.raises(ScriptedFailureError):  # another conversation, which is alike
        await answer(library.open(str(path)), [HumanMessage("x")])


async def test_a_failure_can_come_in_the_middle(tmp_path: Path) -> None:
    model = opened(
        tmp_path,
        "turns: [{steps: [{text: one two three four, chunk_tokens: 1,"
        " fail: {kind: dropped, after_tokens: 2}}]}]",
    )
    seen = []
    with pytest.raises(ScriptedFailureError):
        async for chunk in model.astream([HumanMessage("x")]):
            seen.append(chunk.text)
    assert seen == ["one", " two"]


async def test_arguments_can_be_broken(tmp_path: Path) -> None:
    model = opened(tmp_path, """turns: [{steps: [{calls: [{name: f, raw_args: '{"a": '}]}]}]""")
    whole = await answer(model, [HumanMessage("x")])
    assert whole.tool_calls == [] or whole.tool_calls[0]["args"] == {}


async def test_parallel_runs_do_not_mix(tmp_path: Path) -> None:
    model = opened(tmp_path, "turns: [{steps: ['{{message}}']}]")
    texts = [str(i) for i in range(20)]
    answers = await asyncio.gather(*(answer(model, [HumanMessage(text)]) for text in texts))
    assert [a.text for a in answers] == texts


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("turns:\n  - stepps: []\n", ":2:5", "stepps: there is no such field"),
        ("turns:\n  - steps:\n      - calls:\n          - name: 3\n", ":4:13", "string"),
        ("turns:\n  - when: '['\n    steps: [a]\n", ":2:5", "not a regular expression"),
        ("turns: [a\n", ":2:1", "expected"),
        ("- a\n", ":1:1", "mapping"),
        ("turns: []\n", ":1:1", "at least 1"),
        ("turns: [{steps: [{fail: {kind: fire}}]}]", ":1:26", "'rate_limit'"),
    ],
)
def test_a_wrong_script_is_told_by_line_and_column(tmp_path: Path, text: str, where: str, what: str) -> None:
    with pytest.raises(ModelError) as raised:
        opened(tmp_path, text)
    assert f"script.yaml{where}: " in str(raised.value)
    assert what in str(raised.value)


def test_an_unknown_script_names_the_packaged_ones() -> None:
    with pytest.raises(ModelError, match=r"demo, echo"):
        ScriptLibrary().open("nothing")


@pytest.mark.parametrize("name", packaged_scripts())
def test_every_packaged_script_is_right(name: str) -> None:
    assert ScriptLibrary().open(name).script.description


def test_the_script_in_the_guide_is_right(tmp_path: Path) -> None:
    guide = Path(__file__).parents[4] / "docs" / "guides" / "models.md"
    block = guide.read_text().split("```yaml\n")[1].split("```")[0]
    assert len(opened(tmp_path, block).script.turns) == 3
