"""What a person sees of a run: plain lines in a pipe, a live view on a terminal.

Both are fed events, in order, and keep the execution's status by the same fold as the server.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import IO, Protocol

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from agent_runner.cli._output import clean, one_line, to_dict
from agent_runner.client.executions import phase_name
from agent_runner.domain.status import StatusFold, is_terminal
from agent_runner.v1.events_pb2 import ExecutionEvent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus, AgentMessage, TodoItem
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_COMPLETED,
    EXECUTION_FAILED,
    MESSAGE_AI,
    TODO_CANCELLED,
    TODO_COMPLETED,
    TODO_IN_PROGRESS,
)

Line = tuple[str, str]
"""A label and a text."""

_TODO_TOOL = "write_todos"  # its effect is shown as todos, so the call is not shown beside them
TODO_MARKS = {TODO_COMPLETED: "[x]", TODO_IN_PROGRESS: "[>]", TODO_CANCELLED: "[-]"}


class Progress(Protocol):
    """Shows events as they come."""

    @property
    def status(self) -> AgentExecutionStatus:
        """The fold of what was shown."""
        ...

    def show(self, event: ExecutionEvent) -> None:
        """Show one event."""
        ...

    def say(self, text: str) -> None:
        """Show a line of our own, such as that the connection was lost."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


class JsonLines:
    """One event per line, with the JSON names of protobuf."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._fold = StatusFold()

    @property
    def status(self) -> AgentExecutionStatus:
        return self._fold.status

    def show(self, event: ExecutionEvent) -> None:
        self._fold.apply(event)
        self._stream.write(json.dumps(to_dict(event), ensure_ascii=False) + "\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")

    def close(self) -> None:
        pass


class Quiet:
    """Nothing is shown; the fold alone is kept."""

    def __init__(self) -> None:
        self._fold = StatusFold()

    @property
    def status(self) -> AgentExecutionStatus:
        return self._fold.status

    def show(self, event: ExecutionEvent) -> None:
        self._fold.apply(event)

    def say(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")

    def close(self) -> None:
        pass


class PlainLines:
    """A line per event, flushed, for pipes and logs; text comes when a message is whole.

    Args:
        without_answer: leave out the answer, which is printed elsewhere.
    """

    def __init__(self, stream: IO[str], *, without_answer: bool = False) -> None:
        self._stream = stream
        self._lines = EventLines(without_answer=without_answer)

    @property
    def status(self) -> AgentExecutionStatus:
        return self._lines.status

    def show(self, event: ExecutionEvent) -> None:
        self._write(_clock(event.time), self._lines.of(event))

    def say(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")

    def close(self) -> None:
        self._write("--:--:--", self._lines.rest())

    def _write(self, clock: str, lines: list[Line]) -> None:
        for label, text in lines:
            for line in text.splitlines() or [""]:
                self._stream.write(f"{clock} {label:<8} {line}\n")
        self._stream.flush()


class EventLines:
    """Turns an event into (label, text) pairs, none for those too small to show.

    Args:
        without_answer: leave out the message after which the execution completes. To know which one that
            is, each message is held back until something else happens.
    """

    def __init__(self, *, without_answer: bool = False) -> None:
        self._without_answer = without_answer
        self._held: list[Line] = []
        self._tool_names: dict[str, str] = {}
        self._fold = StatusFold()
        self._makers: dict[str, Callable[[ExecutionEvent], Iterator[Line]]] = {
            "phase_changed": self._phase,
            "attempt_started": self._attempt,
            "message_completed": self._message,
            "tool_call_started": self._tool_started,
            "tool_call_completed": self._tool_completed,
            "tool_call_failed": self._tool_failed,
            "todos_changed": self._todos,
            "sub_agent_started": self._sub_agent_started,
            "sub_agent_completed": self._sub_agent_completed,
            "approval_asked": self._approval_asked,
            "approval_resolved": self._approval_resolved,
            "warning_raised": self._warning,
            "run_described": self._described,
            "cancel_requested": self._cancel_requested,
            "pause_requested": self._pause_requested,
            "paused": self._paused,
            "resumed": self._resumed,
            "steering_joined": self._steering_joined,
            "joined_execution": self._joined_execution,
        }

    @property
    def status(self) -> AgentExecutionStatus:
        return self._fold.status

    @property
    def held_text(self) -> str:
        """The message that is held back; empty when there is none."""
        return "\n".join(text for _, text in self._held)

    def of(self, event: ExecutionEvent) -> list[Line]:
        """Apply the event and tell it; text is clean and may have several lines."""
        unfinished = self._unfinished() if event.WhichOneof("event") == "phase_changed" else ""
        self._fold.apply(event)
        lines = self._told(event)
        if not lines:
            return []
        if self._without_answer and lines[0][0] == "message" and not event.sub_agent_id:
            held, self._held = self._held, lines
            return held
        if event.phase_changed.phase == EXECUTION_COMPLETED:
            self._held = []
        elif unfinished and is_terminal(event.phase_changed.phase):
            lines.insert(0, ("message", f"{clean(unfinished)} …"))
        return [*self.rest(), *lines]

    def rest(self) -> list[Line]:
        """What is held back, to be shown when nothing more comes."""
        held, self._held = self._held, []
        return held

    def _told(self, event: ExecutionEvent) -> list[Line]:
        maker = self._makers.get(event.WhichOneof("event") or "")
        if maker is None:
            return []
        of_whom = self._sub_agent_name(event.sub_agent_id)
        prefix = f"{of_whom}: " if of_whom else ""
        return [(label, prefix + clean(text)) for label, text in maker(event)]

    def _unfinished(self) -> str:
        """What the agent was saying; a run that fails or is cancelled keeps it."""
        return next((m.content.strip() for m in reversed(self._fold.status.messages) if m.streaming), "")

    def _sub_agent_name(self, sub_agent_id: str) -> str:
        if not sub_agent_id:
            return ""
        known = (s.name for s in self._fold.status.sub_agent_executions if s.id == sub_agent_id)
        return next(known, sub_agent_id)

    def _phase(self, event: ExecutionEvent) -> Iterator[Line]:
        change = event.phase_changed
        name = phase_name(change.phase)
        if not is_terminal(change.phase):
            yield "phase", name
            return
        yield "phase", f"{name}{summary(self._fold.status)}"
        if change.error:
            yield "error" if change.phase == EXECUTION_FAILED else "reason", change.error

    def _attempt(self, event: ExecutionEvent) -> Iterator[Line]:
        if event.attempt > 1:
            started = event.attempt_started
            yield "attempt", f"{event.attempt} on {started.worker}" + (" goes on" if started.resumed else "")

    def _message(self, event: ExecutionEvent) -> Iterator[Line]:
        completed = event.message_completed
        message = find_message(self._fold.status, completed.message_id)
        text = completed.content if message is None else message.content
        if message is not None and message.type != MESSAGE_AI:
            return
        if text.strip():
            yield "message", text.strip()

    def _tool_started(self, event: ExecutionEvent) -> Iterator[Line]:
        started = event.tool_call_started
        self._tool_names[started.tool_call_id] = started.name
        if started.name != _TODO_TOOL:
            yield "tool", f"{started.name} {arguments_line(started.args)}".rstrip()

    def _tool_completed(self, event: ExecutionEvent) -> Iterator[Line]:
        done = event.tool_call_completed
        name = self._tool_name(done.tool_call_id)
        if name != _TODO_TOOL:
            yield "done", f"{name}{_result(done.result)}"

    def _tool_failed(self, event: ExecutionEvent) -> Iterator[Line]:
        failed = event.tool_call_failed
        yield "failed", f"{self._tool_name(failed.tool_call_id)}{_result(failed.error)}"

    def _tool_name(self, tool_call_id: str) -> str:
        return self._tool_names.get(tool_call_id, tool_call_id)

    def _todos(self, event: ExecutionEvent) -> Iterator[Line]:
        for todo in event.todos_changed.todos:
            yield "todo", todo_line(todo)

    def _sub_agent_started(self, event: ExecutionEvent) -> Iterator[Line]:
        started = event.sub_agent_started
        yield "agent", f"{started.name} starts: {one_line(started.input, 120)}"

    def _sub_agent_completed(self, event: ExecutionEvent) -> Iterator[Line]:
        done = event.sub_agent_completed
        name = self._sub_agent_name(done.id)
        yield "agent", f"{name} failed: {one_line(done.error, 200)}" if done.error else f"{name} is done"

    def _approval_asked(self, event: ExecutionEvent) -> Iterator[Line]:
        yield "approve", f"{event.approval_asked.approval_id}: {event.approval_asked.question}"

    def _approval_resolved(self, event: ExecutionEvent) -> Iterator[Line]:
        resolved = event.approval_resolved
        yield "approve", f"{resolved.approval_id} {'approved' if resolved.approved else 'refused'}"

    def _warning(self, event: ExecutionEvent) -> Iterator[Line]:
        yield "warning", event.warning_raised.text

    def _described(self, event: ExecutionEvent) -> Iterator[Line]:
        if event.run_described.model:
            yield "model", event.run_described.model

    def _cancel_requested(self, event: ExecutionEvent) -> Iterator[Line]:
        yield "cancel", event.cancel_requested.reason or "asked for"

    def _pause_requested(self, event: ExecutionEvent) -> Iterator[Line]:
        yield "pause", event.pause_requested.reason or "asked for"

    def _paused(self, event: ExecutionEvent) -> Iterator[Line]:
        yield "pause", "it has stopped and waits to be resumed"

    def _resumed(self, event: ExecutionEvent) -> Iterator[Line]:
        yield "pause", "it goes on"

    def _steering_joined(self, event: ExecutionEvent) -> Iterator[Line]:
        name = event.steering_joined.execution_id
        message = find_message(self._fold.status, f"human-{name}")
        yield "joined", one_line(message.content, 160) if message is not None else name

    def _joined_execution(self, event: ExecutionEvent) -> Iterator[Line]:
        yield "joined", f"the message joined {event.joined_execution.execution_id}, which answers it"


def find_message(status: AgentExecutionStatus, message_id: str) -> AgentMessage | None:
    """A message by id, the agent's own or a sub-agent's; None when there is none."""
    for messages in (status.messages, *(s.messages for s in status.sub_agent_executions)):
        for message in reversed(messages):
            if message.id == message_id:
                return message
    return None


def answer_of(status: AgentExecutionStatus) -> str:
    """The agent's last words; empty when it has said nothing."""
    said = (
        m.content.strip() for m in reversed(status.messages) if m.type == MESSAGE_AI and m.content.strip()
    )
    return next(said, "")


def arguments_line(arguments: Struct, width: int = 120) -> str:
    """`path=/a content=…`, each value short."""
    shown = []
    for name, value in sorted(MessageToDict(arguments).items()):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        shown.append(f"{name}={one_line(text, 60)}")
    return one_line(" ".join(shown), width)


def todo_line(todo: TodoItem) -> str:
    return f"{TODO_MARKS.get(todo.status, '[ ]')} {one_line(todo.content)}"


def summary(status: AgentExecutionStatus) -> str:
    """` in 3.2 s, 1,234 tokens`, as far as it is known."""
    parts = []
    seconds = elapsed(status)
    if seconds is not None:
        parts.append(f"in {seconds:.1f} s")
    usage = status.run.usage
    if tokens := usage.input_tokens + usage.output_tokens:
        parts.append(f"{tokens:,} tokens")
    if usage.cost_usd:
        parts.append(f"${usage.cost_usd:.4f}")
    return f" {', '.join(parts)}" if parts else ""


def elapsed(status: AgentExecutionStatus) -> float | None:
    """Seconds from start to end; None while one of them is not known."""
    try:
        return (moment(status.completed_at) - moment(status.started_at)).total_seconds()
    except ValueError:
        return None


def moment(text: str) -> datetime:
    """RFC 3339 to a time.

    Raises:
        ValueError: it is none.
    """
    return datetime.fromisoformat(text)


def _clock(time: str) -> str:
    try:
        return moment(time).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return "--:--:--"


def _result(text: str) -> str:
    short = one_line(text, 160)
    return f": {short}" if short else ""
