"""A worker that dies while the control plane is away loses nothing: its memory is no place of truth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from integration.fakes.runner_stack import Stack, parts, stack

from agent_runner.adapters.workflows.temporal import StarterSettings
from agent_runner.domain.status import fold
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.execution_service_pb2 import WatchExecutionResponse
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED, TOOL_CALL_COMPLETED

WORDS = "word " * 100
TALKS_AND_ACTS = f"""
turns:
  - steps:
      - text: "{WORDS}"
        delay_ms: 10
        chunk_tokens: 1
        calls: [{{name: execute, args: {{command: "echo once >> effects; cat effects"}}}}]
      - text: Done.
"""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Stack]:
    async with stack(tmp_path, StarterSettings(heartbeat_timeout=timedelta(seconds=2))) as made:
        yield made


async def answered(world: Stack, execution: AgentExecution) -> None:
    """Until a checkpoint has the model's answer, whatever the log knows of it."""
    place = {"configurable": {"thread_id": f"thread-{execution.spec.session_id}", "checkpoint_ns": ""}}
    async with parts(world.server.address, world.directory) as made, asyncio.timeout(20):
        assert made.checkpoints is not None
        while True:
            saved = [entry async for entry in made.checkpoints.saver.alist(place)]
            written = [value for entry in saved for _task, _channel, value in entry.pending_writes or ()]
            listed = [m for value in written for m in (value if isinstance(value, list) else [value])]
            if any(getattr(message, "type", "") == "ai" for message in listed):
                return
            await asyncio.sleep(0.05)


async def log_of(world: Stack, execution: AgentExecution) -> list[ExecutionEvent]:
    return [
        event
        async for batch in world.server.services.watches.watch(execution.metadata.id)
        for event in WatchExecutionResponse.FromString(batch.payload).events
    ]


@pytest.mark.parametrize("after_the_answer", [False, True], ids=["amid-an-answer", "before-a-tool"])
async def test_what_a_dead_worker_could_not_send_is_told_by_the_next(
    world: Stack, after_the_answer: bool
) -> None:
    worker = await world.spawn_worker()
    execution = await world.create(await world.agent(TALKS_AND_ACTS))
    await world.seen(execution, "word word")
    await world.server.stop()
    if after_the_answer:
        await answered(world, execution)
    worker.kill()
    await worker.wait()
    await world.server.start()
    await world.run_worker()

    status = (await world.ended(execution)).status

    assert status.phase == EXECUTION_COMPLETED, status.error
    assert [m.content.strip() for m in status.messages] == ["hello", WORDS.strip(), "Done."]
    [call] = status.tool_calls
    assert (call.status, call.result.split()[:2]) == (TOOL_CALL_COMPLETED, ["once", "[Command"])
    log = await log_of(world, execution)
    assert [event.seq for event in log] == list(range(1, len(log) + 1))
    assert fold(AgentExecutionStatus(), log).messages == status.messages
