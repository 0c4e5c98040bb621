"""What happens to an execution when a process it needs dies, stops or cannot be reached."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from integration.fakes.outboxes import completed, written
from integration.fakes.runner_stack import GATE, PATIENT, Stack, said, stack
from structlog.testing import capture_logs
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import PauseActivityRequest, UnpauseActivityRequest

from agent_runner.adapters.workflows.temporal import StarterSettings
from agent_runner.domain.attempts import AttemptLimits
from agent_runner.ports.workflows import EXECUTE_GRAPHTON
from agent_runner.runner.worker import WorkerSettings
from agent_runner.v1.execution_service_pb2 import WatchExecutionResponse
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_COMPLETED,
    EXECUTION_FAILED,
    MESSAGE_HUMAN,
    TOOL_CALL_COMPLETED,
    TOOL_CALL_FAILED,
)

EFFECTS = """
turns:
  - steps:
      - text: First.
        calls: [{name: execute, args: {command: "echo first >> effects"}}]
      - text: Second.
        calls: [{name: execute, args: {command: "echo second >> effects; echo under way; %s"}}]
      - text: Third.
        calls: [{name: execute, args: {command: "cat effects"}}]
      - text: Done.
"""
FOR_EVER = "sleep 3600"
TALK = "turns: [{steps: [{text: '" + "word " * 300 + "', delay_ms: 10, chunk_tokens: 1}]}]"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Stack]:
    async with stack(tmp_path, StarterSettings(heartbeat_timeout=timedelta(seconds=5))) as made:
        yield made


async def no_workflow_left(world: Stack, execution: AgentExecution) -> None:
    async with asyncio.timeout(120):
        while await world.server.services.workflows.running(execution.metadata.id):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_killed_worker_is_taken_over_and_nothing_with_effects_runs_twice(world: Stack) -> None:
    first = await world.spawn_worker()
    created = await world.create(await world.agent(EFFECTS % FOR_EVER))
    await world.seen(created, "under way\\n")
    first.kill()
    await first.wait()
    began = asyncio.get_running_loop().time()
    await world.run_worker()

    status = (await world.ended(created)).status

    print(f"killed to ended elsewhere: {asyncio.get_running_loop().time() - began:.1f} s")
    assert status.phase == EXECUTION_COMPLETED, status.error
    assert status.run.attempt >= 2
    assert [m.content for m in status.messages][-4:] == ["First.", "Second.", "Third.", "Done."]
    assert [m.type for m in status.messages].count(MESSAGE_HUMAN) == 1
    calls = status.tool_calls
    assert [c.status for c in calls] == [TOOL_CALL_COMPLETED, TOOL_CALL_FAILED, TOOL_CALL_COMPLETED]
    assert calls[2].result.split()[:2] == ["first", "second"]
    assert calls[2].result.count("first") == 1


async def test_a_stopping_worker_hands_over_at_the_next_step(world: Stack) -> None:
    first = await world.spawn_worker()
    created = await world.create(await world.agent(EFFECTS % GATE.format("go")))
    await world.seen(created, "under way\\n")
    first.send_signal(signal.SIGTERM)
    await said(first, "stopping")
    world.let_go(created)
    await world.run_worker()

    status = (await world.ended(created)).status

    assert status.phase == EXECUTION_COMPLETED, status.error
    assert status.run.attempt == 2
    assert [c.status for c in status.tool_calls] == [TOOL_CALL_COMPLETED] * 3
    assert status.tool_calls[2].result.split()[:2] == ["first", "second"]
    assert [m.content for m in status.messages][1:] == ["First.", "Second.", "Third.", "Done."]
    async with asyncio.timeout(120):
        assert await first.wait() == 0


async def test_a_worker_that_must_stop_now_leaves_the_turn_to_another(world: Stack) -> None:
    worker = await world.run_worker(WorkerSettings(grace=timedelta(milliseconds=200)))
    created = await world.create(await world.agent(TALK))
    await world.seen(created, "word word")
    await worker.stop()
    assert (await world.get(created)).status.phase != EXECUTION_CANCELLED
    await world.run_worker()

    status = (await world.ended(created)).status

    assert status.phase == EXECUTION_COMPLETED, status.error
    assert [m.content for m in status.messages] == ["hello", "word " * 300]


async def test_events_of_an_outage_of_the_control_plane_arrive_later(world: Stack) -> None:
    await world.run_worker()
    created = await world.create(await world.agent(TALK))
    await world.seen(created, "word word")
    await world.server.stop()
    await written(world.directory / "outbox", completed)  # the agent has spoken to its end
    assert (await world.get(created)).status.phase not in (EXECUTION_COMPLETED, EXECUTION_FAILED)
    await world.server.start()

    status = (await world.ended(created)).status

    assert status.phase == EXECUTION_COMPLETED, status.error
    assert [m.content for m in status.messages] == ["hello", "word " * 300]
    assert status.run.attempt == 1


async def test_an_execution_waits_for_a_control_plane_that_is_away(world: Stack) -> None:
    created = await world.create(await world.agent("turns: [{steps: [hello back]}]"))
    await world.server.stop()
    await world.run_worker()
    await asyncio.sleep(1)
    await world.server.start()

    status = (await world.ended(created)).status

    assert status.phase == EXECUTION_COMPLETED, status.error
    assert status.messages[-1].content == "hello back"


async def test_a_killed_temporal_comes_back_and_the_run_goes_on(world: Stack) -> None:
    await world.run_worker()
    created = await world.create(await world.agent(TALK))
    await world.seen(created, "word word")
    assert world.temporal.pid is not None
    os.kill(world.temporal.pid, signal.SIGKILL)

    status = (await world.ended(created)).status

    assert status.phase == EXECUTION_COMPLETED, status.error
    assert [m.content for m in status.messages] == ["hello", "word " * 300]
    await no_workflow_left(world, created)


async def test_an_end_stored_while_temporal_was_away_is_found(world: Stack) -> None:
    await world.run_worker()
    created = await world.create(await world.agent(TALK))
    await world.seen(created, "word word")
    await world.temporal.stop()

    status = (await world.ended(created)).status
    await asyncio.sleep(6)  # longer than the heartbeat timeout
    await world.temporal.start()

    assert status.phase == EXECUTION_COMPLETED, status.error
    await no_workflow_left(world, created)
    assert (await world.get(created)).status == status
    await world.handle(created).result()


async def test_an_attempt_temporal_takes_away_says_so_in_one_line(
    world: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    await world.run_worker()
    created = await world.create(await world.agent(EFFECTS % FOR_EVER))
    await world.seen(created, "under way\\n")
    execution = WorkflowExecution(workflow_id=world.handle(created).id)
    chosen = {"namespace": world.client.namespace, "execution": execution, "type": EXECUTE_GRAPHTON}
    with capture_logs() as said:
        await world.client.workflow_service.pause_activity(PauseActivityRequest(**chosen))
        async with asyncio.timeout(120):
            while not any(line["log_level"] == "warning" for line in said):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    await world.client.workflow_service.unpause_activity(UnpauseActivityRequest(**chosen))

    status = (await world.ended(created)).status

    assert status.phase == EXECUTION_COMPLETED, status.error
    assert [line["event"] for line in said if line["log_level"] == "warning"] == ["execution taken away"]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_cancel_is_stored_when_the_worker_is_gone(world: Stack) -> None:
    worker = await world.spawn_worker()
    created = await world.create(await world.agent(EFFECTS % FOR_EVER))
    await world.seen(created, "under way\\n")
    worker.kill()
    await worker.wait()

    await world.server.services.executions.cancel(created.metadata.id, "enough")

    status = (await world.ended(created)).status
    assert status.phase == EXECUTION_CANCELLED
    assert status.tool_calls[1].error
    await no_workflow_left(world, created)


async def test_any_number_of_workers_may_hand_a_turn_over(tmp_path: Path) -> None:
    async with stack(tmp_path, StarterSettings(max_attempts=3)) as world:
        await hand_over_again_and_again(world)


async def hand_over_again_and_again(world: Stack) -> None:
    step = "{text: Step %d., calls: [{name: execute, args: {command: '%s'}}]}"
    steps = ", ".join(step % (number, GATE.format(f"go{number}")) for number in range(8))
    worker = await world.run_worker(PATIENT)
    created = await world.create(await world.agent(f"turns: [{{steps: [{steps}, Done.]}}]"))
    for number in range(6):
        await world.seen(created, f"go{number} ]")
        await world.stop_at_gate(worker, created, f"go{number}")
        worker = await world.run_worker(PATIENT)
    for number in (6, 7):
        world.let_go(created, f"go{number}")

    status = (await world.ended(created)).status

    assert status.phase == EXECUTION_COMPLETED, status.error
    assert [m.content for m in status.messages][1:] == [*(f"Step {n}." for n in range(8)), "Done."]
    assert status.run.attempt > 5
    assert status.run.broken_attempts == 0


async def test_a_turn_that_ends_its_worker_each_time_ends_as_failed(tmp_path: Path) -> None:
    settings = StarterSettings(heartbeat_timeout=timedelta(seconds=1))
    async with stack(tmp_path, settings, AttemptLimits(lost=2)) as world:
        created = await world.create(await world.agent(TALK.replace("word ", "word " * 100)))
        for attempt in (1, 2):
            worker = await world.spawn_worker()
            await world.seen(created, f"attempt: {attempt}")
            worker.kill()
            await worker.wait()
        await world.run_worker()

        status = (await world.ended(created)).status
        await no_workflow_left(world, created)

    assert status.phase == EXECUTION_FAILED
    assert "stopped answering 2 times in a row" in status.error
    assert status.run.attempt == 2


async def test_a_foreign_worker_that_dies_again_and_again_ends_as_failed(tmp_path: Path) -> None:
    settings = StarterSettings(heartbeat_timeout=timedelta(seconds=5), max_attempts=1, full_argument=True)
    async with stack(tmp_path, settings) as world:
        worker = await world.spawn_worker()
        created = await world.create(await world.agent(EFFECTS % FOR_EVER))
        await world.seen(created, "under way\\n")
        worker.kill()
        await worker.wait()

        status = (await world.ended(created)).status

    assert status.phase == EXECUTION_FAILED
    assert "stopped answering" in status.error and status.completed_at
    assert [m.content for m in status.messages] == ["hello", "First.", "Second."]


async def test_an_attempt_that_takes_too_long_ends_as_failed(tmp_path: Path) -> None:
    async with stack(tmp_path, StarterSettings(execution_timeout=timedelta(seconds=8))) as world:
        await world.run_worker()
        # What is loaded once has been loaded; so the time is long enough to begin to speak on a busy
        # machine, and much too short to end.
        await world.ended(await world.create(await world.agent("turns: [{steps: [hello back]}]")))
        created = await world.create(await world.agent(TALK.replace("word ", "word " * 100)))

        status = (await world.ended(created)).status

    assert status.phase == EXECUTION_FAILED
    assert "longer than" in status.error
    assert "word word" in status.messages[-1].content


async def test_one_fault_after_another_loses_nothing_and_repeats_nothing(world: Stack) -> None:
    step = "{text: 'Step %d goes like this', delay_ms: 10, chunk_tokens: 1, calls: [%s]}"
    call = "{name: execute, args: {command: 'echo %d >> effects; sleep 0.2'}}"
    steps = "\n".join(f"      - {step % (n, call % n)}" for n in range(12))
    agent = await world.agent(f"turns:\n  - steps:\n{steps}\n      - done\n")
    workers = await asyncio.gather(world.spawn_worker(), world.spawn_worker())
    created = [await world.create(agent) for _ in range(6)]
    ends = [asyncio.create_task(world.ended(execution)) for execution in created]
    for fault in ("kill", "control plane", "temporal", "term", "kill"):
        await asyncio.sleep(1.5)
        if fault == "control plane":
            await world.server.stop()
            await asyncio.sleep(1)
            await world.server.start()
        elif fault == "temporal" and world.temporal.pid is not None:
            os.kill(world.temporal.pid, signal.SIGKILL)
        else:
            victim = workers.pop(0)
            victim.send_signal(signal.SIGKILL if fault == "kill" else signal.SIGTERM)
            workers.append(await world.spawn_worker())

    for execution in await asyncio.gather(*ends):
        status = execution.status
        assert status.phase == EXECUTION_COMPLETED, status.error
        said = [message.content for message in status.messages]
        assert said == ["hello", *(f"Step {n} goes like this" for n in range(12)), "done"]
        assert len(status.tool_calls) == 12
        await effects_are_not_repeated(world, execution)
        await the_log_has_no_gap(world, execution)


async def effects_are_not_repeated(world: Stack, execution: AgentExecution) -> None:
    places = world.directory.glob(f"sandboxes/**/{execution.spec.session_id}/**/effects")
    lines = [line for path in places for line in path.read_text().split()]
    assert len(lines) == len(set(lines))


async def the_log_has_no_gap(world: Stack, execution: AgentExecution) -> None:
    seqs: list[int] = []
    async for batch in world.server.services.watches.watch(execution.metadata.id):
        seqs += [event.seq for event in WatchExecutionResponse.FromString(batch.payload).events]
    assert seqs == list(range(1, execution.status.run.last_seq + 1))
