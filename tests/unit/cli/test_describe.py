"""What people read of where an execution stands."""

from __future__ import annotations

import re

import pytest

from agent_runner.cli._columns import render
from agent_runner.cli._describe import describe
from agent_runner.client.kinds import EXECUTION
from agent_runner.v1.status_pb2 import RunStatus
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_CANCELLED, EXECUTION_IN_PROGRESS
from ai.stigmer.commons.apiresource.metadata_pb2 import ApiResourceMetadata


def an_execution(run: RunStatus) -> AgentExecution:
    return AgentExecution(
        metadata=ApiResourceMetadata(id="aex-1"),
        status=AgentExecutionStatus(phase=EXECUTION_IN_PROGRESS, run=run),
    )


@pytest.mark.parametrize(
    ("run", "phase"),
    [
        (RunStatus(), "IN_PROGRESS"),
        (RunStatus(queue_position=2), "IN_PROGRESS (2 before it)"),
        (RunStatus(paused=True), "IN_PROGRESS (paused)"),
        (RunStatus(paused=True, queue_position=2), "IN_PROGRESS (paused)"),
    ],
)
def test_a_list_tells_who_waits_and_who_is_paused(run: RunStatus, phase: str) -> None:
    row = render(EXECUTION, [an_execution(run)], wide=False).splitlines()[1]

    assert re.split(r" {2,}", row)[1] == phase


def test_describing_says_how_a_paused_one_goes_on() -> None:
    text = describe(EXECUTION, an_execution(RunStatus(paused=True)))

    assert "Paused:        goes on with: agent-runner resume aex-1" in text.splitlines()
    assert "Paused" not in describe(EXECUTION, an_execution(RunStatus()))


def test_describing_names_the_execution_a_message_joined() -> None:
    text = describe(EXECUTION, an_execution(RunStatus(joined_execution_id="aex-0")))

    assert "Joined:        aex-0, which answers it" in text.splitlines()


def test_describing_tells_what_was_said_with_a_cancel_and_a_pause() -> None:
    asked = describe(EXECUTION, an_execution(RunStatus(cancel_reason="too slow", pause_reason="lunch")))
    assert {"Cancel:        too slow", "Pause:         lunch"} <= set(asked.splitlines())

    ended = an_execution(RunStatus(cancel_reason="too slow"))
    ended.status.phase, ended.status.error = EXECUTION_CANCELLED, "The execution was cancelled."
    assert "Reason:        The execution was cancelled." in describe(EXECUTION, ended).splitlines()
    assert "Error:" not in describe(EXECUTION, ended)

    ended.status.error = "too slow"
    assert describe(EXECUTION, ended).count("too slow") == 1
