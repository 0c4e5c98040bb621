"""From the engine's stream to our events: what LangGraph's `messages`, `tasks` and `custom` modes mean.

Nothing here imports the engine: an item is (namespace, mode, data) of plain attributes and mappings, so
recorded streams are enough to test it. The rules:

- A model step is a task `model`; its id makes the message's id. Chunks of one step with another run id
  mean that the call was tried again: the message begins anew.
- `tools` tasks carry their tool call in the input. The calls themselves go to the journal by the
  middleware, or come as ready events where nobody has to wait for them; here a `task` call becomes a
  sub-agent, and everything of a namespace below its task belongs to that sub-agent.
- Every other node is the engine's own business.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent_runner.adapters.agents.answers import ArgumentWatch
from agent_runner.adapters.agents.events import (
    changed_todos,
    completed_message,
    completed_sub_agent,
    joined_message,
    message_id,
    started_message,
    started_sub_agent,
    text_of,
    usage_from,
)
from agent_runner.adapters.agents.keepable import valid_text
from agent_runner.adapters.agents.signals import Joined, ToolOutput, Warned
from agent_runner.v1.events_pb2 import (
    ExecutionEvent,
    MessageDelta,
    ToolCallOutput,
    UsageReported,
    WarningRaised,
)
from agent_runner.v1.status_pb2 import Usage

MODEL_NODE = "model"
TOOLS_NODE = "tools"
SUB_AGENT_TOOL = "task"
TODO_TOOL = "write_todos"

Namespace = tuple[str, ...]


@dataclass(slots=True)
class _Streaming:
    """A message whose chunks come in."""

    message_id: str
    sub_agent_id: str
    run_id: str | None
    pieces: list[str] = field(default_factory=list)
    """What was told of it so far."""


class Normalizer:
    """Turns one turn's stream into events, item by item.

    Args:
        sub_agents: names of the sub-agents there are; `task` calls for others make none.
        cost: US dollars of a model call.
        arguments: is shown the pieces of tool calls.
        done: tool calls whose results an interrupted step has already. The engine tells of their tasks
            again when it goes on, as beginning, and never as ended.
    """

    def __init__(
        self,
        sub_agents: Collection[str],
        cost: Callable[[Usage], float] = lambda _: 0.0,
        arguments: ArgumentWatch | None = None,
        done: Collection[str] = (),
    ) -> None:
        self._done = frozenset(done)
        self._names = frozenset(sub_agents)
        self._cost = cost
        self._arguments = arguments or ArgumentWatch()
        self._streaming: dict[str, _Streaming] = {}
        self._sub_agents: dict[str, str] = {}
        """Task id of a `task` tool call to its tool call id."""

    def events(self, namespace: Namespace, mode: str, data: Any) -> Iterator[ExecutionEvent]:
        """The events one item of the stream stands for, often none."""
        if mode == "messages":
            return self._chunk(*data)
        if mode == "tasks":
            return self._task_ended(namespace, data) if "result" in data else self._task_began(data)
        return self._custom(data) if mode == "custom" else iter(())

    def _chunk(self, chunk: Any, metadata: Mapping[str, Any]) -> Iterator[ExecutionEvent]:
        if metadata.get("langgraph_node") != MODEL_NODE or chunk.type != "AIMessageChunk":
            return
        if metadata.get("lc_source"):  # the engine's own call, such as a summary
            if chunk.usage_metadata:
                yield self._usage(chunk.usage_metadata, "", "")
            return
        namespace = metadata["langgraph_checkpoint_ns"]
        message = self._streaming.get(namespace)
        if message is None:
            message = self._open(namespace, chunk.id)
            yield started_message(message.message_id, "", message.sub_agent_id)
        elif message.run_id != chunk.id:
            message.run_id = chunk.id
            message.pieces.clear()
            self._arguments.end(message.message_id)
            yield started_message(message.message_id, "", message.sub_agent_id)
        if chunk.tool_call_chunks:
            self._arguments.take(message.message_id, chunk)
        if chunk.chunk_position == "last":
            self._arguments.end(message.message_id)
        content = chunk.content
        text = valid_text(content if type(content) is str else text_of(content))
        if text:
            message.pieces.append(text)
            yield ExecutionEvent(
                sub_agent_id=message.sub_agent_id,
                message_delta=MessageDelta(message_id=message.message_id, text=text),
            )

    def _open(self, checkpoint_namespace: str, run_id: str | None) -> _Streaming:
        above, _, last = checkpoint_namespace.rpartition("|")
        sub_agent = self._sub_agent_of(tuple(above.split("|")) if above else ())
        message = _Streaming(message_id(last.rpartition(":")[2]), sub_agent, run_id)
        self._streaming[checkpoint_namespace] = message
        return message

    def _sub_agent_of(self, namespace: Namespace) -> str:
        return self._sub_agents.get(namespace[-1].rpartition(":")[2], "") if namespace else ""

    def _task_began(self, task: Mapping[str, Any]) -> Iterator[ExecutionEvent]:
        call = _tool_call(task)
        if call is None or call["name"] != SUB_AGENT_TOOL:
            return
        name = str(call["args"].get("subagent_type", ""))
        if name not in self._names or call["id"] in self._done:
            return
        self._sub_agents[task["id"]] = call["id"]
        yield started_sub_agent(call)

    def _task_ended(self, namespace: Namespace, task: Mapping[str, Any]) -> Iterator[ExecutionEvent]:
        result = task["result"] if isinstance(task["result"], Mapping) else {}
        if task["name"] == MODEL_NODE:
            yield from self._answered(namespace, task["id"], written_messages(result))
        elif task["name"] == TOOLS_NODE:
            for todos in written(result, "todos")[-1:] if not namespace else ():
                yield changed_todos(todos)
            sub_agent = self._sub_agents.get(task["id"])
            if sub_agent is not None:
                messages = written_messages(result)
                yield completed_sub_agent(sub_agent, messages[-1] if messages else None, task.get("error"))

    def _answered(self, namespace: Namespace, task_id: str, messages: list[Any]) -> Iterator[ExecutionEvent]:
        place = "|".join((*namespace, f"{MODEL_NODE}:{task_id}"))
        streamed = self._streaming.pop(place, None)
        for answer in messages:
            if answer.type != "ai":  # such as an instruction to remove messages
                continue
            known = streamed or self._open(place, None)
            self._streaming.pop(place, None)
            text = text_of(answer.content)
            if streamed is None:
                yield started_message(known.message_id, "", known.sub_agent_id)
            # Told again only when it is not what the pieces make, since it would double what is sent.
            rest = "" if "".join(known.pieces) == text else text
            yield completed_message(known.message_id, rest, known.sub_agent_id)
            yield self._usage(answer.usage_metadata, known.message_id, known.sub_agent_id)

    def _usage(self, metadata: Mapping[str, Any] | None, message: str, sub_agent: str) -> ExecutionEvent:
        usage = usage_from(metadata)
        usage.cost_usd = self._cost(usage)
        reported = UsageReported(usage=usage, message_id=message)
        return ExecutionEvent(sub_agent_id=sub_agent, usage_reported=reported)

    def _custom(self, data: Any) -> Iterator[ExecutionEvent]:
        if isinstance(data, ExecutionEvent):
            yield data
        elif isinstance(data, ToolOutput):
            output = ToolCallOutput(tool_call_id=data.tool_call_id, text=data.text)
            yield ExecutionEvent(sub_agent_id=data.sub_agent_id, tool_call_output=output)
        elif isinstance(data, Warned):
            yield ExecutionEvent(warning_raised=WarningRaised(text=data.text))
        elif isinstance(data, Joined):
            yield from joined_message(data.execution_id, data.text)


def _tool_call(task: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The call a `tools` task runs: one task, one call."""
    given = task.get("input")
    if task["name"] != TOOLS_NODE:
        return None
    if isinstance(given, list) and given and isinstance(given[0], Mapping):
        given = given[0]
    if isinstance(given, Mapping) and "tool_call" in given:
        given = given["tool_call"]
    return given if isinstance(given, Mapping) and "args" in given else None


def written_messages(result: Mapping[str, Any]) -> list[Any]:
    """The messages in a task's result; other things that stand among them are left out."""
    found = [message for write in written(result, "messages") for message in _listed(write)]
    return [message for message in found if hasattr(message, "type")]


def written(result: Mapping[str, Any], name: str) -> list[Any]:
    """What a task wrote to a channel; several writes come in a wrapping of their own."""
    value = result.get(name)
    if isinstance(value, Mapping) and "$writes" in value:
        return list(value["$writes"])
    return [] if value is None else [value]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
