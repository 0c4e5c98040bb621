"""Cancels where Temporal pushes none to workers: silent work learns of them by its heartbeats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from integration.fakes.runner_stack import Stack, stack

from agent_runner.adapters.temporal import managed
from agent_runner.adapters.workflows.temporal import StarterSettings
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_CANCELLED

SILENT_TOOL = "turns: [{steps: [{text: Working., calls: [{name: execute, args: {command: sleep 999}}]}]}]"
SILENT_MODEL = """
turns:
  - steps:
      - calls: [{name: execute, args: {command: pwd}}]
      - {text: Never said., first_token_ms: 999000}
"""
STREAMS = "turns: [{steps: [{text: '" + "word " * 20_000 + "', delay_ms: 20, chunk_tokens: 1}]}]"


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    plain = tuple(value for value in managed._DYNAMIC_CONFIG if "WorkerCommand" not in value)
    assert len(plain) < len(managed._DYNAMIC_CONFIG)
    monkeypatch.setattr(managed, "_DYNAMIC_CONFIG", plain)
    # So long that nothing ends for having been silent.
    async with stack(tmp_path, StarterSettings(heartbeat_timeout=timedelta(minutes=10))) as made:
        yield made


@pytest.mark.parametrize(
    ("script", "begun", "kept"),
    [
        (SILENT_TOOL, "TOOL_CALL_RUNNING", ["hello", "Working."]),
        (SILENT_MODEL, "TOOL_CALL_COMPLETED", ["hello"]),
    ],
    ids=["silent tool", "silent model"],
)
async def test_silent_work_is_cancelled_by_a_heartbeat(
    world: Stack, script: str, begun: str, kept: list[str]
) -> None:
    await world.run_worker()
    created = await world.create(await world.agent(script))
    await world.seen(created, begun)

    await world.server.services.executions.cancel(created.metadata.id, "enough")
    status = (await world.ended(created)).status

    assert status.phase == EXECUTION_CANCELLED
    assert [m.content for m in status.messages if m.content] == kept
    assert all(call.error or call.result for call in status.tool_calls)
    assert status.run.attempt == 1
    await closed(world, created.metadata.id)


async def test_a_model_that_streams_is_cancelled_by_the_next_answer(world: Stack) -> None:
    await world.run_worker()
    created = await world.create(await world.agent(STREAMS))
    await world.seen(created, "word word")

    await world.server.services.executions.cancel(created.metadata.id, "enough")
    status = (await world.ended(created)).status

    assert status.phase == EXECUTION_CANCELLED
    assert status.messages[-1].content.startswith("word word")
    await closed(world, created.metadata.id)


async def closed(world: Stack, execution_id: str) -> None:
    """Until Temporal has closed the workflow as well."""
    async with asyncio.timeout(120):
        while await world.server.services.workflows.running(execution_id):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
