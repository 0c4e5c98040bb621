"""Reporting what an agent does, without its secrets."""

from __future__ import annotations

from agent_runner.domain.masking import EventMasker, Masker
from agent_runner.ports.agents import RecordedCall
from agent_runner.ports.status_sinks import StatusSink
from agent_runner.v1.events_pb2 import ExecutionEvent


class MaskedReport:
    """The journal of one turn and the way out of its events; secrets are masked in all of them."""

    def __init__(self, sink: StatusSink, masker: Masker) -> None:
        self._sink = sink
        self._masker = EventMasker(masker)

    def emit(self, event: ExecutionEvent) -> None:
        for shown in self._masker.mask(event):
            self._sink.emit(shown)

    def end(self) -> None:
        """Nothing more is said: let out what was held back of a text that broke off."""
        for rest in self._masker.end():
            self._sink.emit(rest)

    def recorded(self, tool_call_id: str) -> RecordedCall | None:
        return self._sink.recorded(tool_call_id)

    async def begin(self, event: ExecutionEvent) -> None:
        *before, shown = self._masker.mask(event)
        for earlier in before:
            self._sink.emit(earlier)
        await self._sink.begin(shown)

    async def finish(self, event: ExecutionEvent) -> None:
        *before, shown = self._masker.mask(event)
        for earlier in before:
            self._sink.emit(earlier)
        await self._sink.finish(shown)
