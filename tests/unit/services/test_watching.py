"""Watching: no gap, no repetition, an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import timedelta

import pytest
from unit.services.conftest import World
from unit.services.fakes.resources import COMPLETED, IN_PROGRESS, execution, goes_on, says
from unit.services.fakes.runners import Runner

from agent_runner.errors import NotFoundError
from agent_runner.services.container import Services
from agent_runner.services.watching import Batch
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.execution_service_pb2 import WatchExecutionResponse
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_COMPLETED,
    EXECUTION_IN_PROGRESS,
    EXECUTION_PENDING,
)

SOON = timedelta(milliseconds=20)


@pytest.fixture
async def runner(services: Services, running: AgentExecution) -> Runner:
    runner = Runner(services, running.metadata.id)
    await runner.start()
    return runner


async def events_of(batches: AsyncIterator[Batch]) -> list[ExecutionEvent]:
    return [event async for b in batches for event in WatchExecutionResponse.FromString(b.payload).events]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(0)


async def states_of(
    states: AsyncIterator[bytes], into: list[AgentExecution] | None = None
) -> list[AgentExecution]:
    found: list[AgentExecution] = [] if into is None else into
    async for state in states:
        found.append(AgentExecution.FromString(state))
    return found


async def test_a_finished_execution_is_watched_to_its_end(
    services: Services, world: World, runner: Runner
) -> None:
    await runner.send(IN_PROGRESS, says("m", "Hello"), COMPLETED)

    for process in (services, world.process()):
        for after in range(6):
            seen = await events_of(process.watches.watch(runner.execution_id, after))
            assert [event.seq for event in seen] == list(range(after + 1, 6))


async def test_who_watches_from_anywhere_misses_and_repeats_nothing(
    services: Services, runner: Runner
) -> None:
    watchers = []
    for number in range(300):
        after = number * 7 % (number + 2)
        watchers.append(
            (after, asyncio.create_task(events_of(services.watches.watch(runner.execution_id, after))))
        )
        await runner.send(*(says(f"{number}.{i}") for i in range(number % 13)))
        if number % 3 == 0:
            await asyncio.sleep(0)
    await runner.send(COMPLETED)

    last = runner.position + 2
    for after, task in watchers:
        assert [event.seq for event in await task] == list(range(after + 1, last + 1))


async def test_who_was_away_for_long_gets_the_rest_from_the_log(services: Services, runner: Runner) -> None:
    seen: list[int] = []
    async with aclosing(services.watches.watch(runner.execution_id)) as batches:
        async for batch in batches:
            seen += [e.seq for e in WatchExecutionResponse.FromString(batch.payload).events]
            if len(seen) < 3:
                for _ in range(30):
                    await runner.send(*(says(f"m{runner.position}", "x" * 5_000) for _ in range(20)))
                await runner.send(COMPLETED)
            assert len(batch.payload) < 1 << 20

    assert seen == list(range(1, runner.position + 3))


async def test_silence_is_filled_with_heartbeats(services: Services, runner: Runner) -> None:
    async with aclosing(services.watches.watch(runner.execution_id, 2, heartbeat=SOON)) as batches:
        beats = [await anext(batches) for _ in range(2)]
        await runner.send(IN_PROGRESS)
        batch = await anext(batches)

    assert [beat.payload for beat in beats] == [b"", b""]
    assert (batch.first, batch.last) == (3, 3)


async def test_appends_of_another_process_arrive(world: World, runner: Runner) -> None:
    other = world.process(replicas=True)
    never = timedelta(hours=1)
    task = asyncio.create_task(events_of(other.watches.watch(runner.execution_id, heartbeat=never)))
    await until(lambda: other.watches.watchers == 1)
    await runner.send(IN_PROGRESS, says("m"))
    await asyncio.sleep(0)
    await runner.send(goes_on("m", "a"), COMPLETED)

    assert [event.seq for event in await asyncio.wait_for(task, 120)] == [1, 2, 3, 4, 5, 6]


async def test_a_lost_announcement_costs_time_and_no_event(world: World, runner: Runner) -> None:
    other = world.process(replicas=True)

    async def lost(topic: str, message: bytes) -> None:
        return

    task = asyncio.create_task(events_of(other.watches.watch(runner.execution_id, heartbeat=SOON)))
    await until(lambda: bool(world.announcer._topics))
    world.announcer.publish = lost  # type: ignore[method-assign]
    await runner.send(IN_PROGRESS, COMPLETED)

    assert [event.seq for event in await asyncio.wait_for(task, 120)] == [1, 2, 3, 4]


async def test_reads_in_another_process_are_as_new_as_the_log(world: World, runner: Runner) -> None:
    other = world.process(replicas=True)
    await other.executions.get(runner.execution_id)

    await runner.send(IN_PROGRESS, COMPLETED)

    assert (await other.executions.get(runner.execution_id)).status.phase == EXECUTION_COMPLETED


async def test_reads_of_a_running_execution_do_not_ask_the_database(
    services: Services, world: World, runner: Runner
) -> None:
    await runner.send(IN_PROGRESS, says("m"))

    def fails(*args: object, **kwargs: object) -> None:
        raise AssertionError("the database was asked")

    for name in ("get", "list", "find"):
        setattr(world.store, name, fails)
    world.log.read = world.log.head = fails  # type: ignore[method-assign, assignment]

    assert (await services.executions.get(runner.execution_id)).status.phase == EXECUTION_IN_PROGRESS
    await runner.send(goes_on("m", "a"))
    async with aclosing(services.watches.subscribe(runner.execution_id)) as states:
        assert AgentExecution.FromString(await anext(states)).status.messages[0].content == "a"


async def test_nothing_is_watched_that_is_not_there(services: Services) -> None:
    for wrong in ("aex-none", "nonsense", ""):
        with pytest.raises(NotFoundError):
            await events_of(services.watches.watch(wrong))
        with pytest.raises(NotFoundError):
            await states_of(services.watches.subscribe(wrong))


async def test_who_watches_a_deleted_execution_is_told(services: Services, runner: Runner) -> None:
    tasks = [
        asyncio.create_task(events_of(services.watches.watch(runner.execution_id))),
        asyncio.create_task(states_of(services.watches.subscribe(runner.execution_id))),
    ]
    await until(lambda: services.watches.watchers == 2)
    await services.executions.delete(runner.execution_id)

    for task in tasks:
        with pytest.raises(NotFoundError):
            await asyncio.wait_for(task, 120)


async def test_nothing_is_left_of_watchers_that_leave(services: Services, runner: Runner) -> None:
    tasks = [asyncio.create_task(events_of(services.watches.watch(runner.execution_id))) for _ in range(5)]
    tasks += [asyncio.create_task(states_of(services.watches.subscribe(runner.execution_id)))]  # type: ignore[list-item]
    await until(lambda: services.watches.watchers == 6)
    live = services.events._logbook.lives.peek(runner.execution_id)
    assert live is not None
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

    assert (live.watchers, live.users, live.subscribers, live.listener) == (0, 0, 0, None)


# Whole executions


async def test_a_subscriber_sees_every_phase_and_the_end(services: Services, running: AgentExecution) -> None:
    states: list[AgentExecution] = []
    subscription = services.watches.subscribe(running.metadata.id, interval=SOON)
    task = asyncio.create_task(states_of(subscription, states))
    await until(lambda: len(states) == 1)
    runner = Runner(services, running.metadata.id)
    await runner.start()
    await runner.send(IN_PROGRESS, says("m", "Hello"), COMPLETED)

    await asyncio.wait_for(task, 120)

    phases = [state.status.phase for state in states]
    assert phases == [EXECUTION_PENDING, EXECUTION_IN_PROGRESS, EXECUTION_COMPLETED]
    assert states[-1] == await services.executions.get(running.metadata.id)


async def test_a_subscription_to_a_finished_execution_ends(
    services: Services, world: World, runner: Runner
) -> None:
    await runner.send(IN_PROGRESS, COMPLETED)

    for process in (services, world.process()):
        states = await asyncio.wait_for(states_of(process.watches.subscribe(runner.execution_id)), 120)
        assert [state.status.phase for state in states] == [EXECUTION_COMPLETED]


async def test_a_subscriber_gets_the_latest_and_not_every_state(services: Services, runner: Runner) -> None:
    states: list[AgentExecution] = []
    subscription = services.watches.subscribe(runner.execution_id, interval=timedelta(hours=1))
    task = asyncio.create_task(states_of(subscription, states))
    await until(lambda: len(states) == 1)
    await runner.send(IN_PROGRESS, says("m"))
    for _ in range(200):
        await runner.send(goes_on("m", "x"))
    await runner.send(COMPLETED)

    await asyncio.wait_for(task, 120)

    lengths = [len(s.status.messages[0].content) for s in states if s.status.messages]
    assert lengths == sorted(lengths)
    assert lengths[-1] == 200
    assert len(states) <= 4  # at first, the phases, and at the end, which waits for no interval


async def test_one_that_waits_sees_how_the_queue_moves(services: Services, runner: Runner) -> None:
    session_id = runner.granted.execution.spec.session_id
    second = await services.executions.create(execution(session_id=session_id))
    third = await services.executions.create(execution(session_id=session_id))
    places: list[int] = []

    async def look() -> None:
        async with aclosing(services.watches.subscribe(third.metadata.id, interval=SOON)) as states:
            async for state in states:
                places.append(AgentExecution.FromString(state).status.run.queue_position)
                if not places[-1]:
                    return

    task = asyncio.create_task(look())
    await until(lambda: places == [2])
    await runner.send(IN_PROGRESS, COMPLETED)
    await until(lambda: places == [2, 1])
    next_runner = Runner(services, second.metadata.id)
    await next_runner.start()
    await next_runner.send(COMPLETED)

    await asyncio.wait_for(task, 120)
    assert places == [2, 1, 0]
