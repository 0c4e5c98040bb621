"""Pausing, steering, and removing, with everything real but the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from integration.fakes.runner_stack import GATE, PATIENT, Stack, parts, stack
from temporalio.client import WorkflowExecutionStatus

from agent_runner.domain.phases import is_terminal
from agent_runner.v1.options_pb2 import BUSY_POLICY_STEER
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_COMPLETED,
    EXECUTION_IN_PROGRESS,
    MESSAGE_HUMAN,
)

GATED = f"""
turns:
  - steps:
      - text: First.
        calls: [{{name: execute, args: {{command: "echo one >> log.txt; {GATE.format("go")}"}}}}]
      - text: Second.
        calls: [{{name: execute, args: {{command: "echo two >> log.txt; cat log.txt"}}}}]
      - text: "Done."
"""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Stack]:
    async with stack(tmp_path) as made:
        yield made


async def until_paused(world: Stack, execution: AgentExecution) -> AgentExecutionStatus:
    async with asyncio.timeout(120):
        async for body in world.server.services.watches.subscribe(execution.metadata.id):
            status = AgentExecution.FromString(body).status
            assert not is_terminal(status.phase), status.error
            if status.run.paused:
                return status
    raise AssertionError("the subscription ended early")


async def test_a_paused_run_holds_no_worker_and_goes_on_where_it_was(world: Stack) -> None:
    worker = await world.run_worker()
    execution = await world.create(await world.agent(GATED))
    await world.seen(execution, "echo one")

    await world.server.services.executions.pause(execution.metadata.id)
    world.let_go(execution)
    status = await until_paused(world, execution)

    assert status.phase == EXECUTION_IN_PROGRESS
    assert [call.status for call in status.tool_calls] == [3]  # finished, and the next one not begun
    async with asyncio.timeout(120):
        await world.handle(execution).result()
    await worker.stop()
    assert (await world.server.services.reconciler.reconcile()).started == 0

    await world.run_worker()
    await world.server.services.executions.resume(execution.metadata.id)
    ended = (await world.ended(execution)).status
    assert ended.phase == EXECUTION_COMPLETED, ended.error
    assert ended.tool_calls[1].result.split()[:2] == ["one", "two"]
    assert [m.content for m in ended.messages] == ["hello", "First.", "Second.", "Done."]
    assert ended.run.attempt == 2


async def test_a_run_whose_workflow_was_taken_away_goes_on_from_its_checkpoint(world: Stack) -> None:
    worker = await world.run_worker(PATIENT)
    execution = await world.create(await world.agent(GATED))
    await world.seen(execution, "echo one")
    await world.stop_at_gate(worker, execution)
    # As when Temporal loses what it had. One that runs would take it for a cancel.
    await world.handle(execution).terminate("lost")
    await world.run_worker()

    assert (await world.server.services.reconciler.reconcile()).restarted == 1

    ended = (await world.ended(execution)).status
    assert ended.phase == EXECUTION_COMPLETED, ended.error
    assert [m.content for m in ended.messages] == ["hello", "First.", "Second.", "Done."]
    assert ended.tool_calls[1].result.split()[:2] == ["one", "two"]


async def test_a_message_joins_the_turn_before_its_next_model_call(world: Stack) -> None:
    await world.run_worker()
    execution = await world.create(await world.agent(GATED))
    await world.seen(execution, "echo one")
    steering = AgentExecution(api_version="agentic.stigmer.ai/v1", kind="AgentExecution")
    steering.metadata.SetInParent()
    steering.spec.session_id, steering.spec.message = execution.spec.session_id, "be quick"
    steering.spec.execution_config.options.if_busy = BUSY_POLICY_STEER
    steered = await world.server.services.executions.create(steering)
    world.let_go(execution)

    ended = (await world.ended(execution)).status

    assert ended.phase == EXECUTION_COMPLETED, ended.error
    said = [(m.type == MESSAGE_HUMAN, m.content) for m in ended.messages]
    assert (True, "be quick") in said
    assert said.index((True, "be quick")) < said.index((False, "Done."))
    over = (await world.ended(steered)).status
    assert over.phase == EXECUTION_COMPLETED
    assert over.run.joined_execution_id == execution.metadata.id
    # The conversation has it where it joined.
    async with parts(world.server.address, world.directory) as made:
        assert made.checkpoints is not None
        place = {"configurable": {"thread_id": f"thread-{execution.spec.session_id}", "checkpoint_ns": ""}}
        saved = [entry async for entry in made.checkpoints.saver.alist(place)]
    assert 0 < len(saved) <= 3


async def test_a_deleted_session_leaves_neither_sandbox_nor_thread(world: Stack) -> None:
    await world.run_worker()
    execution = await world.create(await world.agent(GATED))
    await world.seen(execution, "echo one")
    session_id = execution.spec.session_id

    await world.server.services.sessions.delete(session_id)
    handle = world.client.get_workflow_handle(f"agent-runner/session/cleanup/{session_id}")
    async with asyncio.timeout(120):
        await handle.result()

    assert (await handle.describe()).status is WorkflowExecutionStatus.COMPLETED
    async with parts(world.server.address, world.directory) as made:
        assert session_id not in await made.sandboxes.sessions()
        assert made.checkpoints is not None
        place = {"configurable": {"thread_id": f"thread-{session_id}", "checkpoint_ns": ""}}
        assert await made.checkpoints.saver.aget_tuple(place) is None
