"""An outage of the control plane loses nothing, whatever becomes of the worker and the attempt meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from integration.fakes.outboxes import completed, emptied, events_in, files_in, text_of, written
from integration.fakes.runner_stack import Stack, parts, stack

from agent_runner.adapters.workflows.temporal import StarterSettings
from agent_runner.bootstrap.runner import delivering
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

STORY = " ".join(f"word{n}" for n in range(200))
TELLS = f"""
turns:
  - steps:
      - text: "{STORY} fin."
        delay_ms: 10
        chunk_tokens: 1
"""
READS_ON = f"""
turns:
  - steps:
      - text: "{STORY}"
        delay_ms: 5
        chunk_tokens: 1
        calls: [{{name: write_todos, args: {{todos: [{{content: look, status: completed}}]}}}}]
      - calls: [{{name: ls, args: {{path: "/workspace"}}}}]
      - text: Read.
"""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Stack]:
    async with stack(tmp_path, StarterSettings(heartbeat_timeout=timedelta(seconds=5))) as made:
        yield made


async def cut_off(world: Stack, script: str, words: str) -> AgentExecution:
    """An execution whose control plane goes away when it has got these words, and before it gets others."""
    agent = await world.agent(script)
    world.server.leaves_after = words
    execution = await world.create(agent)
    await world.seen(execution, words)
    await world.server.stop()
    return execution


async def answered(world: Stack, execution: AgentExecution) -> None:
    """Until a checkpoint has the model's answer, whatever the log knows of it."""
    place = {"configurable": {"thread_id": f"thread-{execution.spec.session_id}", "checkpoint_ns": ""}}
    async with parts(world.server.address, world.directory) as made, asyncio.timeout(120):
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
    execution = await cut_off(world, TALKS_AND_ACTS, "word word")
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


def outbox(world: Stack) -> Path:
    return world.directory / "outbox"


async def delivered(world: Stack, execution: AgentExecution, attempts: int) -> list[ExecutionEvent]:
    """The whole story, told once, by so many attempts, and nothing left on the disk."""
    status = (await world.ended(execution)).status
    assert status.phase == EXECUTION_COMPLETED, status.error
    assert [m.content.strip() for m in status.messages] == ["hello", f"{STORY} fin."]
    log = await log_of(world, execution)
    assert [event.seq for event in log] == list(range(1, len(log) + 1))
    assert fold(AgentExecutionStatus(), log).messages == status.messages
    assert max(event.attempt for event in log) == attempts
    await emptied(outbox(world))
    return log


async def test_a_story_told_to_its_end_in_an_outage_survives_its_runner(world: Stack) -> None:
    worker = await world.spawn_worker()
    execution = await cut_off(world, TELLS, "word3 ")
    await written(outbox(world), completed)
    worker.kill()
    await worker.wait()
    assert files_in(outbox(world))
    await world.server.start()
    await world.spawn_worker()

    log = await delivered(world, execution, attempts=1)

    # In the words of the attempt that is dead; the end was there before another one could begin.
    assert text_of([event for event in log if event.attempt == 1]).strip() == f"{STORY} fin."
    async with asyncio.timeout(120):
        await world.handle(execution).result()


async def test_half_a_story_survives_its_runner_and_is_told_anew(world: Stack) -> None:
    worker = await world.spawn_worker()
    execution = await cut_off(world, TELLS.replace("fin.", "and on " * 10_000), "word3 ")
    await written(outbox(world), lambda events: "word120" in text_of(events))
    worker.kill()
    await worker.wait()
    await world.rewrite(execution, TELLS)
    await world.server.start()
    await world.spawn_worker()

    log = await delivered(world, execution, attempts=2)

    assert "word119 word120" in text_of([event for event in log if event.attempt == 1])


async def test_an_end_whose_runner_never_comes_back_is_delivered_by_any_on_its_directory(
    world: Stack,
) -> None:
    worker = await world.spawn_worker()
    execution = await cut_off(world, TELLS, "word3 ")
    await written(outbox(world), completed)
    worker.kill()
    await worker.wait()
    await world.server.start()

    async with parts(world.server.address, world.directory) as made, delivering(made.sinks):
        await delivered(world, execution, attempts=1)


async def test_an_end_said_after_the_time_of_its_attempt_arrives(tmp_path: Path) -> None:
    limits = StarterSettings(execution_timeout=timedelta(seconds=20), heartbeat_timeout=timedelta(minutes=5))
    async with stack(tmp_path, limits) as world:
        await world.spawn_worker()
        execution = await cut_off(world, TELLS, "word3 ")
        async with asyncio.timeout(120):
            while not await timed_out(world, execution):  # noqa: ASYNC110 (nor has a retry)
                await asyncio.sleep(0.1)
        assert completed(events_in(outbox(world)))
        await world.server.start()

        await delivered(world, execution, attempts=1)
        async with asyncio.timeout(120):
            await world.handle(execution).result()


async def timed_out(world: Stack, execution: AgentExecution) -> bool:
    """Whether Temporal has taken the execution from its first attempt."""
    shown = (await world.handle(execution).describe()).raw_description
    return any(activity.attempt > 1 for activity in shown.pending_activities)


async def test_a_runner_that_lives_on_delivers_all_of_an_outage_as_one_attempt(world: Stack) -> None:
    await world.spawn_worker()
    execution = await cut_off(world, TELLS, "word3 ")
    await written(outbox(world), lambda events: "word120" in text_of(events))
    await world.server.start()

    await delivered(world, execution, attempts=1)


async def test_calls_without_effects_run_on_in_an_outage_and_are_told_later(world: Stack) -> None:
    worker = await world.spawn_worker()
    execution = await cut_off(world, READS_ON, "word3 ")
    await written(outbox(world), completed)
    worker.kill()
    await worker.wait()
    await world.server.start()
    await world.spawn_worker()

    status = (await world.ended(execution)).status

    assert status.phase == EXECUTION_COMPLETED, status.error
    assert [(c.name, c.status) for c in status.tool_calls] == [
        ("write_todos", TOOL_CALL_COMPLETED),
        ("ls", TOOL_CALL_COMPLETED),
    ]
    assert status.messages[-1].content == "Read."
    assert {event.attempt for event in await log_of(world, execution)} == {0, 1}
    await emptied(outbox(world))
