"""What an execution returns to Temporal."""

from __future__ import annotations

import json

import pytest
from google.protobuf.json_format import MessageToDict

from agent_runner.runner.results import MOST_BYTES, summary
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED, MESSAGE_AI


def json_bytes(status: AgentExecutionStatus) -> int:
    return len(json.dumps(MessageToDict(status), separators=(",", ":")))


def test_a_small_status_is_returned_whole_but_for_our_own_fields() -> None:
    status = AgentExecutionStatus(phase=EXECUTION_COMPLETED)
    status.messages.add(type=MESSAGE_AI, content="hello", id="m1")
    status.run.last_seq = 7
    result = summary(status)
    assert result.messages[0].content == "hello"
    assert not result.messages[0].id and not result.HasField("run")
    assert status.run.last_seq == 7 and status.messages[0].id == "m1"


@pytest.mark.parametrize("text", ["word ", "\u0001", "é", "🙂"])
def test_a_large_status_fits_whatever_its_letters_cost_as_json(text: str) -> None:
    status = AgentExecutionStatus(phase=EXECUTION_COMPLETED, error=text * 5000, started_at="2026-01-01")
    for number in range(500):
        status.messages.add(type=MESSAGE_AI, content=f"{number} {text * 2000}")
        status.tool_calls.add(name="ls", result=text * 500)
    result = summary(status)
    assert json_bytes(result) <= MOST_BYTES
    assert result.phase == EXECUTION_COMPLETED and result.started_at
    kept = [int(message.content.split(" ")[0]) for message in result.messages]
    assert kept == list(range(500 - len(kept), 500))
