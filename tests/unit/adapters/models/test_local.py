"""The model that runs here: what it is asked, its template, its guards, and where it stands in the order."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_openai import ChatOpenAI

from agent_runner.adapters.models import local_server
from agent_runner.adapters.models.embedded_facts import WEIGHTS
from agent_runner.adapters.models.embedded_pull import WeightsStore
from agent_runner.adapters.models.local import LocalChat
from agent_runner.adapters.models.local_profile import done_so_far, for_small_model, is_repeated, rounds
from agent_runner.adapters.models.local_template import fenced, stock_template
from agent_runner.adapters.models.names import parse_model_name
from agent_runner.adapters.models.resolver import DefaultModelResolver
from agent_runner.errors import FailedPreconditionError, ModelError
from agent_runner.v1.options_pb2 import ModelOptions

STOCK = (
    "For each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\\n<tool_call>\\n"
    '{{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}}\\n</tool_call><|im_end|>\\n" }}\n'
    '            {{- \'\\n<tool_call>\\n{"name": "\' }}\n'
    "            {{- '}\\n</tool_call>' }}\n"
    "        {{- '\\n</tool_response>' }}\n"
    "        {%- if loop.last or x %}"
)


def function(name: str, description: str = "x " * 400, **properties: str) -> dict[str, Any]:
    schema = {name: {"type": kind, "description": "long " * 50} for name, kind in properties.items()}
    parameters = {
        "type": "object",
        "properties": {**schema, "extra": {"type": "string"}},
        "required": [*properties],
    }
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def call(name: str, call_id: str = "c1", **arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def asked(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def answered(text: str, call_id: str = "c1") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


USER = {"role": "user", "content": "go"}


@pytest.mark.parametrize("path", ["file_path", "path"])
def test_a_request_is_within_800_tokens_and_keeps_the_tools_own_names(path: str) -> None:
    tools = [
        function(n, **{path: "string"})
        for n in ("read_file", "edit_file", "ls", "grep", "task", "write_todos")
    ]
    tools += [
        function("execute", command="string"),
        function("write_file", **{path: "string", "content": "string"}),
    ]
    tools += [function(f"weather_{number}", city="string") for number in range(9)]
    system = "You are Ada." + "\n\nYour files are in /workspace, and so on. " + "engine text " * 3000
    made = for_small_model(
        {"model": "m", "messages": [{"role": "system", "content": system}, USER], "tools": tools}
    )
    names = [tool["function"]["name"] for tool in made["tools"]]
    assert names[:4] == ["execute", "write_file", "read_file", "edit_file"]
    assert names[4:] == ["weather_0", "weather_1", "weather_2"]
    assert made["tools"][1]["function"]["parameters"]["required"] == [path, "content"]
    assert made["messages"][0]["content"].endswith("You are Ada.")
    assert len(json.dumps(made["tools"]) + made["messages"][0]["content"]) / 3.5 < 800
    assert (made["model"], made["messages"][1]) == ("m", USER)


def test_long_results_are_cut_and_a_request_without_tools_has_none() -> None:
    made = for_small_model({"messages": [USER, asked(call("execute")), answered("x" * 9000)]})
    assert len(made["messages"][2]["content"]) < 2100 and "tools" not in made


def test_what_was_done_comes_from_results() -> None:
    messages = [
        *(USER, asked(call("write_file", "c0", path="/old")), answered("ok", "c0"), USER),
        asked(call("write_file", "c1", file_path="/workspace/a"), call("execute", "c2", command="false")),
        answered("Updated file /workspace/a", "c1"),
        answered("oh\n[Command failed with exit code 1]", "c2"),
        asked(call("edit_file", "c3", path="/workspace/b")),
        answered("Error: String not found", "c3"),
    ]
    assert done_so_far(messages) == [
        "- write_file /workspace/a: done",
        "- execute false: Command failed with exit code 1",
        "- edit_file /workspace/b: Error: String not found",
    ]
    assert rounds(messages) == 2
    assert is_repeated([("edit_file", '{"path":  "/workspace/b"}')], messages)
    assert not is_repeated([("edit_file", '{"path": "/other"}')], messages)
    assert not is_repeated([("edit_file", "{")], [USER])


def pieces(*calls: tuple[str, str], text: str = "") -> list[ChatGenerationChunk]:
    found = [AIMessageChunk(text)] if text else []
    for number, (name, arguments) in enumerate(calls):
        start = {"name": name, "args": "", "id": f"n{number}", "index": number, "type": "tool_call_chunk"}
        rest = {"name": None, "args": arguments, "id": None, "index": number, "type": "tool_call_chunk"}
        found += [AIMessageChunk("", tool_call_chunks=[piece]) for piece in (start, rest)]  # type: ignore[list-item]
    chunks = [ChatGenerationChunk(message=message) for message in found]
    return [
        *chunks,
        ChatGenerationChunk(message=AIMessageChunk(""), generation_info={"finish_reason": "stop"}),
    ]


async def streamed(
    monkeypatch: pytest.MonkeyPatch, history: list[Any], chunks: list[ChatGenerationChunk]
) -> Any:
    async def model(*_: Any, **__: Any) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in chunks:
            yield chunk

    monkeypatch.setattr(ChatOpenAI, "_astream", model)
    whole: Any = AIMessageChunk("")
    async for chunk in LocalChat(model="m", api_key="k", base_url="http://127.0.0.1:9/v1")._astream(history):  # type: ignore[arg-type]
        whole = whole + chunk.message
    return whole


WROTE = [
    HumanMessage("go"),
    AIMessage("", tool_calls=[{"name": "write_file", "args": {"path": "/workspace/a"}, "id": "c1"}]),
    ToolMessage("Updated", tool_call_id="c1"),
]


async def test_an_answer_ends_with_what_the_tools_did(monkeypatch: pytest.MonkeyPatch) -> None:
    told = await streamed(monkeypatch, WROTE, pieces(text="All is well."))
    assert told.content == "All is well.\n\nWhat the tools did:\n- write_file /workspace/a: done"
    plain = await streamed(monkeypatch, [HumanMessage("hi")], pieces(text="Hello."))
    assert plain.content == "Hello."


async def test_a_repeated_call_ends_the_turn_and_a_new_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    same = await streamed(monkeypatch, WROTE, pieces(("write_file", '{"path": "/workspace/a"}')))
    assert (
        not same.tool_calls and "repeat itself" in same.content and "write_file /workspace/a" in same.content
    )
    new = await streamed(monkeypatch, WROTE, pieces(("write_file", '{"path": "/workspace/b"}')))
    assert [c["args"] for c in new.tool_calls] == [{"path": "/workspace/b"}]


def gguf(template: str) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    entries = text("general.size") + struct.pack("<IQ", 10, 7)
    entries += text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    entries += text("types") + struct.pack("<IIQ", 9, 5, 2) + b"\0" * 8
    entries += text("tokenizer.chat_template") + struct.pack("<I", 8) + text(template)
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 4) + entries


def test_the_template_is_found_and_changed(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf(STOCK))
    changed = fenced(stock_template(tmp_path / "m.gguf"))
    assert "tool_call>" not in changed and changed.count("```json") == 2 and "answer the user now" in changed


@pytest.mark.parametrize("data", [b"", b"not a model", gguf(STOCK)[:60]])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(FailedPreconditionError):
        fenced(stock_template(tmp_path / "m.gguf"))
    with pytest.raises(FailedPreconditionError):
        fenced("{{ another }}")


def test_names() -> None:
    for name in ("local", "LOCAL", "embedded", "local:qwen2.5-coder-1.5b"):
        assert str(parse_model_name(name)) == "local:qwen2.5-coder-1.5b"


def test_it_comes_last_and_only_when_it_was_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolver(environ: dict[str, str], ollama: list[str]) -> DefaultModelResolver:
        return DefaultModelResolver(environ, ollama_models=lambda _: ollama, local_folder=tmp_path)

    assert "agent-runner model pull" in resolver({}, []).describe_default()
    with pytest.raises(ModelError, match="model pull"):
        resolver({}, []).resolve(ModelOptions(model_name="local"))
    with pytest.raises(ModelError, match="is not known"):
        resolver({}, []).resolve(ModelOptions(model_name="local:other"))
    monkeypatch.setattr(WeightsStore, "pulled", lambda _: True)
    assert resolver({}, []).describe_default().startswith(f"local:{WEIGHTS.name} (")
    assert resolver({}, ["qwen3"]).describe_default().startswith("ollama:qwen3")
    assert resolver({"OPENAI_API_KEY": "x" * 20}, []).describe_default().startswith("openai:")


@pytest.mark.parametrize("runtime", [True, False])
def test_the_default_is_checked_without_loading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: bool
) -> None:
    with WeightsStore(tmp_path, WEIGHTS).path.open("wb") as file:
        file.truncate(WEIGHTS.size)  # hollow: nothing could be loaded from it
    monkeypatch.setattr(local_server, "find_spec", lambda _name: object() if runtime else None)
    resolver = DefaultModelResolver({}, ollama_models=lambda _address: [], local_folder=tmp_path)

    if runtime:
        resolver.check_default()
    else:
        with pytest.raises(ModelError, match="needs its runtime"):
            resolver.check_default()
    assert not (tmp_path / "server.log").exists()


def test_a_default_that_was_not_pulled_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model pull"):
        DefaultModelResolver({}, "local", local_folder=tmp_path).check_default()
