"""`describe`: a resource for people to read."""

from __future__ import annotations

from typing import Any

from agent_runner.cli._columns import created_at, name_of
from agent_runner.cli._output import age, clean, one_line, to_dict, to_yaml
from agent_runner.cli._progress import arguments_line, elapsed, summary, todo_line
from agent_runner.client.executions import phase_name
from agent_runner.client.kinds import EXECUTION, Kind
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    MessageType,
    SubAgentStatus,
    ToolCallStatus,
)

_WIDTH = 14


def describe(kind: Kind, resource: Any) -> str:
    """Head, specification, and for executions what happened."""
    lines = _head(kind, resource)
    if kind is EXECUTION:
        lines += _execution(resource)
    else:
        lines += ["", "Spec:", *_indented(to_yaml(to_dict(resource.spec)))]
        status = to_dict(resource.status)
        status.pop("audit", None)
        if status:
            lines += ["", "Status:", *_indented(to_yaml(status))]
    return "\n".join(clean(line) for line in lines)


def _line(name: str, value: object) -> str:
    return f"{name + ':':<{_WIDTH}} {value}"


def _head(kind: Kind, resource: Any) -> list[str]:
    metadata = resource.metadata
    lines = [_line("Kind", kind.name), _line("Name", name_of(kind, resource)), _line("ID", metadata.id)]
    lines.append(_line("Organization", metadata.org or "-"))
    for title, entries in (("Labels", metadata.labels), ("Annotations", metadata.annotations)):
        if entries:
            lines.append(_line(title, ", ".join(f"{k}={v}" for k, v in sorted(entries.items()))))
    created = created_at(resource)
    if created is not None:
        lines.append(_line("Created", f"{created.isoformat()} ({age(created)} ago)"))
    return lines


def _execution(execution: Any) -> list[str]:
    spec, status = execution.spec, execution.status
    lines = [
        _line("Session", spec.session_id),
        _line("Agent", spec.agent_id or "-"),
        _line("Phase", phase_name(status.phase) + summary(status)),
    ]
    if status.error:
        lines.append(_line("Reason" if status.phase == EXECUTION_CANCELLED else "Error", status.error))
    if status.run.cancel_reason and status.run.cancel_reason != status.error:
        lines.append(_line("Cancel", status.run.cancel_reason))
    lines += _run(execution.metadata.id, status.run)
    if spec.runtime_env:
        lines.append(_line("Variables", ", ".join(sorted(spec.runtime_env))))
    lines += ["", "Message:", *_indented(spec.message)]
    if status.todos:
        todos = sorted(status.todos.values(), key=lambda todo: (len(todo.id), todo.id))
        lines += ["", "Todos:", *(f"  {todo_line(todo)}" for todo in todos)]
    if status.sub_agent_executions:
        lines += ["", "Sub-agents:", *(f"  {_sub_agent(s)}" for s in status.sub_agent_executions)]
    if status.tool_calls:
        lines += ["", "Tools:", *(f"  {_tool(call)}" for call in status.tool_calls)]
    if status.messages:
        lines += ["", "Messages:"]
        for message in status.messages:
            lines += [f"  {_type(message)}:", *_indented(message.content, 4)]
    return lines


def _run(execution_id: str, run: Any) -> list[str]:
    lines = []
    if run.paused:
        lines.append(_line("Paused", f"goes on with: agent-runner resume {execution_id}"))
    if run.pause_reason:
        lines.append(_line("Pause", run.pause_reason))
    for name, value in (("Model", run.model), ("Engine", run.engine), ("Sandbox", run.sandbox_id)):
        if value:
            lines.append(_line(name, value))
    if run.attempt > 1:
        lines.append(_line("Attempt", run.attempt))
    if run.queue_position:
        lines.append(_line("Queue", f"{run.queue_position} before it"))
    if run.joined_execution_id:
        lines.append(_line("Joined", f"{run.joined_execution_id}, which answers it"))
    if run.skills:
        lines.append(_line("Skills", ", ".join(f"{s.name}@{s.hash[:12]}" for s in run.skills)))
    lines += [_line("Warning", warning) for warning in run.warnings]
    return lines


def _sub_agent(sub_agent: Any) -> str:
    state = SubAgentStatus.Name(sub_agent.status).removeprefix("SUB_AGENT_")
    return f"{state:<12} {sub_agent.name}: {one_line(sub_agent.input, 100)}"


def _tool(call: Any) -> str:
    state = ToolCallStatus.Name(call.status).removeprefix("TOOL_CALL_")
    seconds = elapsed(call)
    took = f" ({seconds:.1f} s)" if seconds is not None else ""
    outcome = call.error or call.result
    return f"{state:<10} {call.name} {arguments_line(call.args, 80)}{took}" + (
        f": {one_line(outcome, 100)}" if outcome else ""
    )


def _type(message: Any) -> str:
    return MessageType.Name(message.type).removeprefix("MESSAGE_")


def _indented(text: str, by: int = 2) -> list[str]:
    return [f"{' ' * by}{line}" for line in text.rstrip("\n").splitlines()]
