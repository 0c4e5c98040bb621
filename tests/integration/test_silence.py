"""Silence is not death: what says nothing for many heartbeat timeouts goes on, and is not begun twice."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from integration.fakes.runner_stack import Stack, parts, stack

from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.adapters.workflows.temporal import StarterSettings
from agent_runner.ports.sandboxes import Sandbox, SandboxSpec
from agent_runner.runner.worker import RunnerWorker
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED

TIMEOUT = timedelta(seconds=4)
"""Short, and yet no busy machine keeps a heartbeat so long. At the default of five seconds, ten minutes are
120 of them."""
PERIODS = 4
"""How many of them a tool is silent for here: more prove no more, since no beat knows of the one before."""
FEWER = 2

SILENT_TOOL = """
turns:
  - steps:
      - calls:
          - name: execute
            args: {command: "echo ran >> ran; mkfifo gate; read -r line < gate; cat ran", timeout: 600}
      - Done.
"""
# For longer than the heartbeats are listened to.
SILENT_MODEL = "turns: [{steps: [{text: At last., first_token_ms: 20000}]}]"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Stack]:
    async with stack(tmp_path, StarterSettings(heartbeat_timeout=TIMEOUT)) as made:
        yield made


async def beaten(world: Stack, execution: AgentExecution, periods: int) -> None:
    """Until Temporal has heard heartbeats over so many timeouts, of one attempt of the runner."""
    first: datetime | None = None
    async with asyncio.timeout(60 * periods):
        while True:
            described = await world.handle(execution).describe()
            for pending in described.raw_description.pending_activities:
                assert pending.attempt == 1, pending.last_failure.message
                if pending.HasField("last_heartbeat_time"):
                    heard = pending.last_heartbeat_time.ToDatetime()
                    first = first or heard
                    if heard - first >= periods * TIMEOUT:
                        return
            assert first is None or described.raw_description.pending_activities, "it has ended"
            await asyncio.sleep(0.1)


async def released(gate: Path) -> None:
    """Until somebody reads from the pipe; then it is told to go on."""
    async with asyncio.timeout(120):
        while True:
            try:
                writing = os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # not there, or nobody reads yet
                await asyncio.sleep(0.05)
                continue
            os.write(writing, b"\n")
            os.close(writing)
            return


async def test_a_tool_that_prints_nothing_runs_once_to_its_end(world: Stack) -> None:
    await world.run_worker()
    created = await world.create(await world.agent(SILENT_TOOL))
    workspace = world.directory / "sandboxes" / "sessions" / created.spec.session_id / "workspace"

    await beaten(world, created, PERIODS)
    assert (workspace / "ran").read_text() == "ran\n", "it was not the tool that was silent"
    await released(workspace / "gate")
    status = (await world.ended(created)).status

    assert status.phase == EXECUTION_COMPLETED, status.error
    assert status.run.attempt == 1
    [call] = status.tool_calls
    assert call.result.split()[0] == "ran" and call.result.count("ran") == 1


async def test_a_model_that_thinks_long_is_asked_once(world: Stack) -> None:
    await world.run_worker()
    created = await world.create(await world.agent(SILENT_MODEL))

    await beaten(world, created, FEWER)
    status = (await world.ended(created)).status

    assert status.phase == EXECUTION_COMPLETED, status.error
    assert status.run.attempt == 1
    assert [m.content for m in status.messages] == ["hello", "At last."]


class SlowProvider(LocalProvider):
    """Takes its time to start a sandbox, and blocks a thread meanwhile."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.gate = threading.Event()
        self.asked = 0

    async def ensure(self, spec: SandboxSpec) -> Sandbox:
        self.asked += 1
        await asyncio.to_thread(self.gate.wait, 600)
        return await super().ensure(spec)


async def test_a_sandbox_that_starts_slowly_is_waited_for(world: Stack) -> None:
    provider = SlowProvider(world.directory / "sandboxes")
    script = "turns: [{steps: [{calls: [{name: execute, args: {command: pwd}}]}, Done.]}]"
    async with (
        parts(world.server.address, world.directory) as made,
        RunnerWorker(world.client, replace(made, sandboxes=provider)),
    ):
        created = await world.create(await world.agent(script))
        try:
            await beaten(world, created, FEWER)
        finally:
            provider.gate.set()
        status = (await world.ended(created)).status
    await provider.aclose()

    assert status.phase == EXECUTION_COMPLETED, status.error
    assert (status.run.attempt, provider.asked) == (1, 1)
