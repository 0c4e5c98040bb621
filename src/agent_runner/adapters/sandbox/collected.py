"""What a command elsewhere printed so far, and how it ended."""

from __future__ import annotations

from agent_runner.adapters.sandbox.commands import EndMark
from agent_runner.adapters.sandbox.output import BoundedOutput, LiveOutput
from agent_runner.adapters.sandbox.processes import TIMED_OUT
from agent_runner.ports.sandboxes import ExecResult, OnOutput


class Collected:
    """Takes the pieces of both streams (1 standard output, 2 standard error) up to the end's mark."""

    def __init__(self, token: str, on_output: OnOutput | None, limit: int) -> None:
        self._kept = {1: BoundedOutput(limit), 2: BoundedOutput(limit)}
        self._ends = {1: EndMark(token), 2: EndMark(token)}
        live = LiveOutput(on_output, limit)
        self._live = {1: live.stream(), 2: live.stream()}

    @property
    def code(self) -> int | None:
        """The exit code, once the mark was seen."""
        return self._ends[1].code

    @code.setter
    def code(self, value: int) -> None:
        self._ends[1].code = value

    def add(self, stream: int, data: bytes) -> bool:
        """Take a piece; returns whether both streams have ended."""
        if output := self._ends[stream].feed(data):
            self._kept[stream].add(output)
            self._live[stream].add(output)
        return all(end.code is not None for end in self._ends.values())

    def close(self) -> None:
        for live in self._live.values():
            live.close()

    def result(self, *, timed_out: bool) -> ExecResult:
        code = TIMED_OUT if timed_out or self.code is None else self.code
        truncated = any(kept.truncated for kept in self._kept.values())
        return ExecResult(code, self._kept[1].value(), self._kept[2].value(), timed_out, truncated)
