"""Workflows that began under an earlier version go on under this one."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import pytest
from replay.record import CASES
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner

from agent_runner.adapters.temporal.payloads import DATA_CONVERTER
from agent_runner.runner.workflows import CleanUpSession, InvokeAgentExecution, ServeFiles

HISTORIES = {path.stem: path.read_text() for path in (Path(__file__).parent / "data").glob("*.json")}


def replayer() -> Replayer:
    return Replayer(
        workflows=[InvokeAgentExecution, CleanUpSession, ServeFiles],
        workflow_runner=UnsandboxedWorkflowRunner(),
        data_converter=DATA_CONVERTER,
    )


@pytest.mark.parametrize("name", sorted(HISTORIES))
async def test_a_recorded_history_replays(name: str) -> None:
    await replayer().replay_workflow(WorkflowHistory.from_json(name, HISTORIES[name]))


def test_there_is_a_history_for_each_way_a_workflow_goes() -> None:
    assert CASES.keys() <= HISTORIES.keys()


async def test_a_failure_that_comes_together_with_the_cancel_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = "cancelled_by_the_control_plane"
    await replayer().replay_workflow(WorkflowHistory.from_json(name, HISTORIES[name]))
    gc.collect()

    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_changed_workflow_would_be_noticed() -> None:
    text = HISTORIES["completed"].replace('"ExecuteGraphton"', '"SomethingElse"')
    with pytest.raises(Exception, match=r"(?i)nondeterminism|does not match"):
        await replayer().replay_workflow(WorkflowHistory.from_json("changed", text))
