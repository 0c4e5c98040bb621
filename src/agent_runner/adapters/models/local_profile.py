"""What a small model is asked, made from what a large one would be: few tools, a short prompt, plain facts.

Pure functions over the messages and tools of OpenAI's protocol. Before its first word the model reads
some 55 tokens a second, and an engine's own prompt and tools are six thousand of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

MOST_ROUNDS = 10
"""Rounds of tools in a turn; what takes more is beyond this model."""

_TOOLS = {
    "execute": "Run a shell command in the workspace, to run programs, list, move, rename or delete files, "
    "or look things up. Use it also for anything about dates, sums or counts.",
    "write_file": "Write a new text file with the given content.",
    "read_file": "Read a text file.",
    "edit_file": "Change a part of an existing file: replaces one text by another and keeps the rest.",
}
# Tools of the engines that it would only be confused by.
_LEFT_OUT = frozenset(
    {"write_todos", "ls", "glob", "grep", "task", "read", "write", "edit", "delete", "delete_file", "search"}
    | {"think", "start_async_task", "compact_conversation"}
)
_MOST_OTHER_TOOLS = 3
_LONGEST_OTHER_TOOL = 600
_LONGEST_INSTRUCTIONS = 900
_LONGEST_RESULT = 2000

_PROMPT = (
    "You do what the user asks by calling tools, one at a time. File paths begin with /workspace/. "
    "After a tool's result, either call the next tool or answer in one short sentence. Say only what the "
    "results show. Never say that something is done when no tool did it."
)
# Where the engines' own text begins in a system prompt.
_END_OF_INSTRUCTIONS = "Your files are in /workspace"

Payload = dict[str, Any]


def for_small_model(payload: Payload) -> Payload:
    """A request in the form that suits a small model: its prompt and tools within 800 tokens."""
    smaller = {**payload, "messages": [_message(message) for message in payload.get("messages", ())]}
    if tools := _tools(payload.get("tools") or ()):
        smaller["tools"] = tools
    else:
        smaller.pop("tools", None)
    return smaller


def _message(message: Mapping[str, Any]) -> Payload:
    if message["role"] in ("system", "developer"):
        instructions = _text(message["content"]).partition(_END_OF_INSTRUCTIONS)[0].strip()
        own = f"{_PROMPT}\n\n{_cut(instructions, _LONGEST_INSTRUCTIONS)}".strip()
        return {**message, "role": "system", "content": own}
    if message["role"] == "tool":
        return {**message, "content": _cut(_text(message["content"]), _LONGEST_RESULT)}
    if isinstance(message.get("content"), list):
        return {**message, "content": _text(message["content"])}
    return dict(message)


def _tools(tools: Sequence[Mapping[str, Any]]) -> list[Payload]:
    functions = {tool["function"]["name"]: tool["function"] for tool in tools if "function" in tool}
    chosen = [_short(functions[name], text) for name, text in _TOOLS.items() if name in functions]
    others = [f for name, f in functions.items() if name not in _TOOLS and name not in _LEFT_OUT]
    for function in others[:_MOST_OTHER_TOOLS]:
        short = _short(function, _cut(str(function.get("description", "")).split("\n")[0], 160))
        if len(json.dumps(short)) <= _LONGEST_OTHER_TOOL:
            chosen.append(short)
    return [{"type": "function", "function": function} for function in chosen]


def _short(function: Mapping[str, Any], description: str) -> Payload:
    """Name, description and the required arguments; their names are the tool's own."""
    schema = function.get("parameters") or {}
    required = list(schema.get("required") or ())
    properties = {
        name: {"type": schema["properties"][name].get("type", "string")}
        for name in required
        if name in schema.get("properties", {})
    }
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"name": function["name"], "description": description, "parameters": parameters}


def done_so_far(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the tools of this turn really did, a line each, from the calls and their results."""
    lines = []
    for call, result in _calls(messages):
        name, arguments = call["function"]["name"], _arguments(call)
        what = arguments.get("command") or arguments.get("file_path") or arguments.get("path") or ""
        lines.append(f"- {name} {_cut(str(what), 100)}: {_outcome(name, result)}".replace("  ", " "))
    return lines


def rounds(messages: Sequence[Mapping[str, Any]]) -> int:
    """How many rounds of tools the turn has had."""
    return sum(
        1 for message in _turn(messages) if message["role"] == "assistant" and message.get("tool_calls")
    )


def is_repeated(calls: Sequence[tuple[str, str]], messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether (name, arguments) of new calls are just those of the round before: it goes in circles."""
    asked = [m for m in _turn(messages) if m["role"] == "assistant" and m.get("tool_calls")]
    if not asked or not calls:
        return False
    before = [(c["function"]["name"], _arguments(c)) for c in asked[-1]["tool_calls"]]
    return before == [(name, _parsed(arguments)) for name, arguments in calls]


def _turn(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    places = [place for place, message in enumerate(messages) if message["role"] == "user"]
    return list(messages[places[-1] + 1 :]) if places else list(messages)


def _calls(messages: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str]]:
    turn = _turn(messages)
    results = {m.get("tool_call_id"): _text(m["content"]) for m in turn if m["role"] == "tool"}
    return [
        (call, results[call["id"]])
        for message in turn
        for call in message.get("tool_calls") or ()
        if call["id"] in results
    ]


def _outcome(name: str, result: str) -> str:
    first = result.strip().split("\n")[0]
    if name == "execute":
        failed = [line for line in result.splitlines() if "exit code" in line and "exit code 0" not in line]
        return _cut(failed[-1].strip(" []"), 100) if failed else "ran"
    return "done" if not first.lower().startswith(("error", "failed")) else _cut(first, 100)


def _arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    return _parsed(call["function"]["arguments"])


def _parsed(arguments: Any) -> dict[str, Any]:
    try:
        found = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return {"": arguments}
    return found if isinstance(found, dict) else {"": found}


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(block.get("text", "")) for block in content if isinstance(block, dict))
    return str(content or "")


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]} …"
