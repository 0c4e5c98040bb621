"""What an execution returns to Temporal: enough to see how it went."""

from __future__ import annotations

import json

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from agent_runner.domain.wire import without_own_fields
from agent_runner.runner.failures import short
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus, AgentMessage

MOST_BYTES = 12 << 10
"""Of the result as JSON, so that a whole history stays under 20 KiB whatever the run did."""
_MOST_TEXT = 1000


def summary(status: AgentExecutionStatus, most: int = MOST_BYTES) -> AgentExecutionStatus:
    """The status as it is when it is small; else phase, error, times and the newest messages, cut short."""
    if status.ByteSize() <= most:
        whole = without_own_fields(status)
        if _json_bytes(whole) <= most:
            return whole
    result = AgentExecutionStatus(
        phase=status.phase,
        error=short(status.error, _MOST_TEXT),
        started_at=status.started_at,
        completed_at=status.completed_at,
    )
    left = most - _json_bytes(result)
    kept: list[AgentMessage] = []
    for message in reversed(status.messages):
        cut = AgentMessage(
            type=message.type, content=short(message.content, _MOST_TEXT), timestamp=message.timestamp
        )
        left -= _json_bytes(cut) + 1
        if left < len('"messages":[],'):
            break
        kept.append(cut)
    result.messages.extend(reversed(kept))
    return result


def _json_bytes(message: Message) -> int:
    return len(json.dumps(MessageToDict(message), separators=(",", ":")))
