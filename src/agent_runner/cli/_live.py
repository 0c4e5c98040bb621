"""The live view of a run on a terminal.

What is over scrolls up as ordinary text; below it a small region shows what goes on now: todos,
running tools, sub-agents and the text that is being written.
"""

from __future__ import annotations

import time
from typing import IO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from agent_runner.cli._output import clean, one_line, one_line_cut, styled
from agent_runner.cli._progress import EventLines, Line, arguments_line, todo_line
from agent_runner.client.executions import phase_name
from agent_runner.domain.status import is_terminal
from agent_runner.v1.events_pb2 import ExecutionEvent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    SUB_AGENT_IN_PROGRESS,
    TODO_COMPLETED,
    TODO_IN_PROGRESS,
    TOOL_CALL_RUNNING,
)

_STYLES = {
    "tool": "cyan",
    "done": "dim",
    "failed": "red",
    "error": "red",
    "warning": "yellow",
    "cancel": "yellow",
    "agent": "magenta",
    "phase": "bold",
    "attempt": "yellow",
    "model": "dim",
}
# Shown in the region below while they hold, so a line for each would only repeat them.
_NOT_KEPT = frozenset({"todo"})
_ONE_LINE = frozenset({"tool", "done"})
_TEXT_LINES = 12


class LiveView:
    """Shows events on a terminal, at most eight times a second.

    Args:
        without_answer: leave out the answer, which is printed elsewhere.
    """

    def __init__(self, stream: IO[str], *, without_answer: bool = False) -> None:
        self._lines = EventLines(without_answer=without_answer)
        self._began = time.monotonic()
        self._console = Console(
            file=stream, highlight=False, markup=False, no_color=not styled(stream), soft_wrap=False
        )
        self._spinner = Spinner("dots")
        self._live = Live(
            get_renderable=self._region, console=self._console, refresh_per_second=8, transient=True
        )
        self._live.start()

    @property
    def status(self) -> AgentExecutionStatus:
        return self._lines.status

    def show(self, event: ExecutionEvent) -> None:
        lines = self._lines.of(event)
        if is_terminal(event.phase_changed.phase):
            # The region below goes away; how far the plan came stays.
            self._console.print(*self._todos(self.status), sep="\n")
        self._print(lines)

    def _print(self, lines: list[Line]) -> None:
        for label, text in lines:
            if label == "message":
                self._console.print(Text(text))
            elif label not in _NOT_KEPT:
                line = f"{label:<8} {text}"
                if label in _ONE_LINE:
                    line = one_line_cut(line, self._console.width)
                self._console.print(Text(line, style=_STYLES.get(label, "")))

    def say(self, text: str) -> None:
        self._console.print(Text(clean(text), style="yellow"))

    def close(self) -> None:
        self._print(self._lines.rest())
        self._live.stop()

    def _region(self) -> RenderableType:
        status = self._lines.status
        parts: list[RenderableType] = [
            *self._streaming(status),
            *self._todos(status),
            *self._agents(status),
            *self._tools(status),
        ]
        phase = phase_name(status.phase) if status.phase else "STARTING"
        self._spinner.update(text=Text(f"{phase}  {self._elapsed()}  Ctrl-C: detach", style="dim"))
        return Group(*parts, self._spinner)

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._began:.0f} s"

    def _streaming(self, status: AgentExecutionStatus) -> list[RenderableType]:
        said = (clean(m.content) for m in reversed(status.messages) if m.streaming and m.content)
        text = next(said, self._lines.held_text)
        return [Text("\n".join(text.splitlines()[-_TEXT_LINES:]))] if text else []

    def _todos(self, status: AgentExecutionStatus) -> list[RenderableType]:
        styles = {TODO_COMPLETED: "dim", TODO_IN_PROGRESS: "bold"}
        return [Text(todo_line(todo), style=styles.get(todo.status, "")) for todo in ordered_todos(status)]

    def _agents(self, status: AgentExecutionStatus) -> list[RenderableType]:
        running = (s for s in status.sub_agent_executions if s.status == SUB_AGENT_IN_PROGRESS)
        return [Text(f"agent    {s.name}: {one_line(s.input, 80)}", style="magenta") for s in running]

    def _tools(self, status: AgentExecutionStatus) -> list[RenderableType]:
        shown: list[RenderableType] = []
        for call in status.tool_calls:
            if call.status == TOOL_CALL_RUNNING:
                shown.append(Text(f"running  {call.name} {arguments_line(call.args, 90)}", style="cyan"))
                shown += [
                    Text(f"         {line}", style="dim") for line in clean(call.output).splitlines()[-4:]
                ]
        return shown


def ordered_todos(status: AgentExecutionStatus):  # type: ignore[no-untyped-def]
    """Todos in their order: ids are numbers where we made them."""
    return sorted(
        status.todos.values(), key=lambda t: (not t.id.isdigit(), int(t.id) if t.id.isdigit() else 0, t.id)
    )
