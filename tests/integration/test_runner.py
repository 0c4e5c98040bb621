"""The whole way of an execution: service, Temporal, runner, engine, sandbox, and back to who watches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from integration.fakes.runner_stack import Stack, stack
from temporalio.client import WorkflowExecutionStatus

from agent_runner.runner.worker import WorkerSettings
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_COMPLETED,
    EXECUTION_FAILED,
    EXECUTION_IN_PROGRESS,
    MESSAGE_AI,
    MESSAGE_HUMAN,
    TOOL_CALL_COMPLETED,
)

WRITES = """
turns:
  - steps:
      - text: I will write it down.
        calls: [{name: execute, args: {command: "echo once >> log.txt; cat log.txt"}}]
      - text: It is written.
  - steps:
      - text: "Before you said: {{previous_message}}"
"""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Stack]:
    async with stack(tmp_path) as made:
        yield made


async def test_an_execution_runs_to_its_end_and_is_told_truthfully(world: Stack) -> None:
    await world.run_worker()
    agent = await world.agent(WRITES)
    created = await world.create(agent, "write it down")

    status = (await world.ended(created)).status

    assert status.phase == EXECUTION_COMPLETED, status.error
    assert [m.type for m in status.messages] == [MESSAGE_HUMAN, MESSAGE_AI, MESSAGE_AI]
    texts = [m.content for m in status.messages]
    assert texts == ["write it down", "I will write it down.", "It is written."]
    assert [(c.name, c.status) for c in status.tool_calls] == [("execute", TOOL_CALL_COMPLETED)]
    assert "once" in status.tool_calls[0].result
    assert status.messages[1].tool_calls[0].id == status.tool_calls[0].id
    assert status.started_at.endswith("Z") and status.completed_at >= status.started_at
    assert status.run.model.startswith("script:") and status.run.engine.startswith("deepagents")
    assert status.run.sandbox_id and status.run.attempt == 1

    session = await world.server.services.sessions.get(created.spec.session_id)
    assert session.spec.sandbox_id == status.run.sandbox_id

    again = await world.ended(await world.create(agent, "and now?", created.spec.session_id))
    assert again.status.messages[-1].content == "Before you said: write it down"
    assert (await world.handle(created).describe()).status is WorkflowExecutionStatus.COMPLETED


async def test_a_run_fails_readably_and_fails_in_temporal_too(world: Stack) -> None:
    await world.run_worker()
    agent = await world.agent("turns: [{steps: [{text: I try, fail: {kind: no_key, after_tokens: 1}}]}]")
    created = await world.create(agent)

    status = (await world.ended(created)).status

    assert status.phase == EXECUTION_FAILED
    assert "key" in status.error and status.completed_at
    assert not any(message.streaming for message in status.messages)
    with pytest.raises(Exception, match="Workflow execution failed"):
        await world.handle(created).result()


async def test_an_unknown_model_is_told(world: Stack) -> None:
    await world.run_worker()
    agent = await world.agent("turns: [{steps: [hello]}]")
    agent.spec.options.model.model_name = "script:/nowhere.yaml"
    await world.server.services.agents.update(agent)

    status = (await world.ended(await world.create(agent))).status

    assert status.phase == EXECUTION_FAILED
    assert "/nowhere.yaml" in status.error


async def test_a_cancel_keeps_what_was_said(world: Stack) -> None:
    await world.run_worker()
    agent = await world.agent(
        "turns: [{steps: [{text: '" + "word " * 20_000 + "', delay_ms: 20, chunk_tokens: 1}]}]"
    )
    created = await world.create(agent)
    await world.seen(created, "word word")

    await world.server.services.executions.cancel(created.metadata.id, "enough")
    status = (await world.ended(created)).status

    assert status.phase == EXECUTION_CANCELLED
    assert "word word" in status.messages[-1].content and not status.messages[-1].streaming
    # As failed where the runner heard of it from the control plane before Temporal told it.
    with pytest.raises(Exception, match=r"Workflow execution (cancelled|failed)"):
        await world.handle(created).result()


async def test_a_cancel_ends_an_execution_no_runner_took(world: Stack) -> None:
    created = await world.create(await world.agent("turns: [{steps: [hello]}]"))

    await world.server.services.executions.cancel(created.metadata.id, "enough")

    assert (await world.ended(created)).status.phase == EXECUTION_CANCELLED


async def test_a_cancel_by_temporal_alone_ends_a_shell_with_children(world: Stack) -> None:
    await world.run_worker()
    command = "echo started; (sleep 600 & sleep 600 & wait)"
    agent = await world.agent(
        f'turns: [{{steps: [{{calls: [{{name: execute, args: {{command: "{command}"}}}}]}}, done]}}]'
    )
    created = await world.create(agent)
    await world.seen(created, "started\\n")

    await world.handle(created).cancel()

    status = (await world.ended(created)).status
    assert status.phase == EXECUTION_CANCELLED
    assert status.tool_calls[0].error


@pytest.mark.parametrize("rounds", [1, 200])
async def test_history_stays_small_whatever_the_run_did(world: Stack, rounds: int) -> None:
    await world.run_worker()
    calls = "\n".join(
        f"      - {{text: 'round {n} {'x' * 200}', calls: [{{name: write_todos, args: {{todos: "
        f"[{{content: 'step {n}', status: in_progress}}]}}}}]}}"
        for n in range(rounds)
    )
    created = await world.create(await world.agent(f"turns:\n  - steps:\n{calls}\n      - done\n"))

    status = (await world.ended(created)).status
    assert status.phase == EXECUTION_COMPLETED, status.error
    assert len(status.tool_calls) == rounds
    await world.handle(created).result()

    events = await world.history(created)
    size = sum(event.ByteSize() for event in events)
    print(f"history at {rounds} rounds: {size} bytes in {len(events)} events")
    assert size <= 20 << 10


async def test_while_memory_is_short_executions_wait_their_turn(world: Stack) -> None:
    short = True
    await world.run_worker(WorkerSettings(short_of_memory=lambda: short))
    held = await world.create(
        await world.agent(
            "turns: [{steps: [{calls: [{name: execute, args: {command: 'echo up; sleep 3600'}}]}]}]"
        )
    )
    await world.seen(held, "up\\n")
    waits = await world.create(await world.agent("turns: [{steps: [Done.]}]"))
    short = False
    released = datetime.now(UTC)

    status = (await world.ended(waits)).status

    assert status.phase == EXECUTION_COMPLETED, status.error
    assert datetime.fromisoformat(status.started_at) > released
    assert (await world.get(held)).status.phase == EXECUTION_IN_PROGRESS
