"""Events of our vocabulary from what engines give: the small rules every engine shares."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.struct_pb2 import Struct

from agent_runner.adapters.agents.keepable import kept
from agent_runner.domain.tool_results import shortened
from agent_runner.ports.agents import ShownResult
from agent_runner.v1.events_pb2 import (
    ExecutionEvent,
    MessageCompleted,
    MessageStarted,
    SteeringJoined,
    SubAgentCompleted,
    SubAgentStarted,
    TodosChanged,
    ToolCallCompleted,
    ToolCallFailed,
    ToolCallStarted,
)
from agent_runner.v1.status_pb2 import Usage
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import TodoItem
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    MESSAGE_AI,
    MESSAGE_HUMAN,
    TODO_CANCELLED,
    TODO_COMPLETED,
    TODO_IN_PROGRESS,
    TODO_PENDING,
)

_SHOWN_LEVELS = 20
"""A message has at most 100 levels, of which each in a Struct takes three."""
_TODO_STATUS = {
    "pending": TODO_PENDING,
    "in_progress": TODO_IN_PROGRESS,
    "completed": TODO_COMPLETED,
    "cancelled": TODO_CANCELLED,
}


def message_id(task_id: str) -> str:
    """A message's id from the engine's id of the step that asks for it.

    The engine derives that from the checkpoint it starts at, so a call repeated by a resumed attempt
    gives the same message.
    """
    return f"msg-{task_id}"


def human_id(execution_id: str) -> str:
    """Id of the message an execution was made with, in its own turn or in one it joined."""
    return f"human-{execution_id}"


def joined_message(execution_id: str, text: str) -> Iterator[ExecutionEvent]:
    """The message of another execution has joined the turn."""
    name = human_id(execution_id)
    yield ExecutionEvent(message_started=MessageStarted(message_id=name, type=MESSAGE_HUMAN, content=text))
    yield ExecutionEvent(message_completed=MessageCompleted(message_id=name))
    yield ExecutionEvent(steering_joined=SteeringJoined(execution_id=execution_id))


def text_of(content: Any) -> str:
    """The text of a message's content, be it a string or blocks; thinking and images are left out."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return "" if content is None else str(content)
    pieces = []
    for block in content:
        if isinstance(block, str):
            pieces.append(block)
        elif isinstance(block, dict) and block.get("type") == "text":
            pieces.append(str(block.get("text", "")))
    return "".join(pieces)


def result_of(content: Any) -> str:
    """A tool's result as text: text blocks joined; what is no text is named, not quoted."""
    if not isinstance(content, list):
        return text_of(content)
    pieces = []
    for block in content:
        if isinstance(block, dict) and block.get("type") != "text":
            kind = block.get("mime_type") or block.get("type") or "data"
            pieces.append(f"[{kind}]")
        else:
            pieces.append(text_of([block]))
    return "".join(pieces)


def started_message(message_id: str, content: str = "", sub_agent_id: str = "") -> ExecutionEvent:
    started = MessageStarted(message_id=message_id, type=MESSAGE_AI, content=content)
    return ExecutionEvent(sub_agent_id=sub_agent_id, message_started=started)


def completed_message(message_id: str, content: str, sub_agent_id: str = "") -> ExecutionEvent:
    completed = MessageCompleted(message_id=message_id, content=content)
    return ExecutionEvent(sub_agent_id=sub_agent_id, message_completed=completed)


def changed_todos(todos: Sequence[Mapping[str, Any]]) -> ExecutionEvent:
    """The whole list. Engines give no ids, so an item's id is its place, from 1."""
    items = [
        TodoItem(
            id=str(place),
            content=str(todo.get("content", "")),
            status=_TODO_STATUS.get(str(todo.get("status", "")), TODO_PENDING),
        )
        for place, todo in enumerate(todos, start=1)
    ]
    return ExecutionEvent(todos_changed=TodosChanged(todos=items))


def started_call(
    call_id: str, name: str, args: Mapping[str, Any], message_id: str, sub_agent_id: str
) -> ExecutionEvent:
    started = ToolCallStarted(tool_call_id=call_id, name=name, args=_struct(args), message_id=message_id)
    return ExecutionEvent(sub_agent_id=sub_agent_id, tool_call_started=started)


def completed_call(call_id: str, result: ShownResult, sub_agent_id: str) -> ExecutionEvent:
    completed = ToolCallCompleted(tool_call_id=call_id, result=result.text, artifact_key=result.artifact_key)
    return ExecutionEvent(sub_agent_id=sub_agent_id, tool_call_completed=completed)


def failed_call(
    call_id: str, error: ShownResult, sub_agent_id: str, *, interrupted: bool = False
) -> ExecutionEvent:
    failed = ToolCallFailed(
        tool_call_id=call_id, error=error.text, interrupted=interrupted, artifact_key=error.artifact_key
    )
    return ExecutionEvent(sub_agent_id=sub_agent_id, tool_call_failed=failed)


def ended_call(call_id: str, message: Any, shown: ShownResult, sub_agent_id: str) -> ExecutionEvent:
    """From the tool's message, or None where it has none."""
    ended = failed_call if getattr(message, "status", "") == "error" else completed_call
    return ended(call_id, shown, sub_agent_id)


def started_sub_agent(call: Mapping[str, Any]) -> ExecutionEvent:
    """From the `task` call that makes it, whose id is its id."""
    started = SubAgentStarted(
        id=call["id"],
        name=str(call["args"].get("subagent_type", "")),
        input=str(call["args"].get("description", "")),
        tool_call_id=call["id"],
    )
    return ExecutionEvent(sub_agent_started=started)


def completed_sub_agent(sub_agent_id: str, result: Any, error: object = None) -> ExecutionEvent:
    """From the result of the `task` call, a tool's message, or None where it has none."""
    text = shortened(result_of(result.content)) if result is not None else ""
    failed = str(error) if error else text if getattr(result, "status", "") == "error" else ""
    completed = SubAgentCompleted(id=sub_agent_id, output="" if failed else text, error=failed)
    return ExecutionEvent(sub_agent_completed=completed)


def usage_from(metadata: Mapping[str, Any] | None) -> Usage:
    """LangChain's usage metadata of one call, as ours; cost not counted yet."""
    if not metadata:
        return Usage(model_calls=1)
    details = metadata.get("input_token_details") or {}
    return Usage(
        input_tokens=metadata.get("input_tokens") or 0,
        output_tokens=metadata.get("output_tokens") or 0,
        cached_input_tokens=details.get("cache_read") or 0,
        model_calls=1,
    )


def _struct(args: Mapping[str, Any]) -> Struct:
    """Arguments as a Struct; what JSON cannot say, or is nested too deep to be shown, becomes text."""
    shown, struct = kept(args, _SHOWN_LEVELS), Struct()
    try:
        struct.update(shown)
    except (ValueError, TypeError):
        struct.update(json.loads(json.dumps(shown, default=str)))
    return struct
