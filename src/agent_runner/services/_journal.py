"""The tool calls a log tells of, so that a resumed turn runs none of them twice."""

from __future__ import annotations

from typing import Final

from agent_runner.ports.stores import EventLog
from agent_runner.services._stored_events import stored_events
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.runner_service_pb2 import RecordedToolCall

MOST_BYTES: Final = 8 << 20
"""Results given back; a turn is resumed at a checkpoint, so it asks for the newest calls alone."""


async def journal(events: EventLog, execution_id: str) -> list[RecordedToolCall]:
    """Calls in the order they began, the newest ones if their results are too many to send."""
    calls: dict[str, RecordedToolCall] = {}
    async for _seq, body in stored_events(events, execution_id):
        _note(calls, ExecutionEvent.FromString(body))
    return _newest(list(calls.values()))


def _note(calls: dict[str, RecordedToolCall], event: ExecutionEvent) -> None:
    kind = event.WhichOneof("event")
    if kind == "tool_call_started":
        started = event.tool_call_started
        calls[started.tool_call_id] = RecordedToolCall(tool_call_id=started.tool_call_id, name=started.name)
    elif kind == "tool_call_completed" and event.tool_call_completed.tool_call_id in calls:
        call = calls[event.tool_call_completed.tool_call_id]
        call.finished, call.result = True, event.tool_call_completed.result
    elif kind == "tool_call_failed" and event.tool_call_failed.tool_call_id in calls:
        call = calls[event.tool_call_failed.tool_call_id]
        call.finished, call.failed, call.result = True, True, event.tool_call_failed.error


def _newest(calls: list[RecordedToolCall]) -> list[RecordedToolCall]:
    size, kept = 0, 0
    for call in reversed(calls):
        size += call.ByteSize()
        if size > MOST_BYTES:
            break
        kept += 1
    return calls[len(calls) - kept :]
