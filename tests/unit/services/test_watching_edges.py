"""Watching at its edges: logs that go, silence of those far ahead, and phases nobody may miss."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest
from unit.services.conftest import World
from unit.services.fakes.resources import COMPLETED, IN_PROGRESS, execution, says
from unit.services.fakes.runners import Runner
from unit.services.test_executions import settled
from unit.services.test_watching import until

from agent_runner.errors import NotFoundError
from agent_runner.services.container import Services
from agent_runner.v1.events_pb2 import ExecutionEvent, PhaseChanged
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


@pytest.mark.parametrize("announced", [True, False])
async def test_who_is_far_behind_is_told_of_a_deletion_at_another_process(
    world: World, services: Services, runner: Runner, monkeypatch: pytest.MonkeyPatch, announced: bool
) -> None:
    for number in range(30):
        await runner.send(*(says(f"{number}.{i}", "x" * 20_000) for i in range(20)))
    other = world.process(replicas=True)
    async with asyncio.timeout(120), aclosing(other.watches.watch(runner.execution_id)) as batches:
        await anext(batches)
        await until(lambda: bool(world.announcer._topics))
        if not announced:
            monkeypatch.setattr(world.announcer, "publish", _lost)
        await services.executions.delete(runner.execution_id)

        with pytest.raises(NotFoundError):
            while True:
                await anext(batches)


async def test_who_waits_for_events_to_come_is_told_of_a_deletion_at_another_process(
    world: World, services: Services, runner: Runner
) -> None:
    other = world.process(replicas=True)
    never = timedelta(hours=1)
    async with aclosing(other.watches.watch(runner.execution_id, 2, heartbeat=never)) as batches:
        waiting = asyncio.ensure_future(anext(batches))
        await until(lambda: bool(world.announcer._topics))
        await services.executions.delete(runner.execution_id)

        with pytest.raises(NotFoundError):  # without a heartbeat
            await asyncio.wait_for(waiting, 120)


async def _lost(topic: str, message: bytes) -> None:
    return


async def test_who_waits_for_what_is_far_ahead_gets_heartbeats_however_busy_it_is(
    services: Services, runner: Runner
) -> None:
    often = timedelta(milliseconds=300)
    async with aclosing(services.watches.watch(runner.execution_id, 100_000, heartbeat=often)) as batches:
        beat = asyncio.ensure_future(anext(batches))
        async with asyncio.timeout(120):
            while not beat.done():
                await runner.send(says("m"))
                await asyncio.sleep(0.001)
        assert beat.result().payload == b""


class Gate:
    """Holds the first call of a method until it is opened."""

    def __init__(self, method: Any) -> None:
        self._method = method
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.reached.set()
        await self.open.wait()
        return await self._method(*args, **kwargs)


async def test_a_phase_that_passes_while_the_place_in_the_queue_is_looked_up_is_shown(
    world: World, services: Services, running: AgentExecution, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = await services.executions.create(execution(session_id=running.spec.session_id))
    gate = Gate(world.store.count)
    monkeypatch.setattr(world.store, "count", gate)
    phases: list[int] = []

    async def look() -> None:
        async with aclosing(services.watches.subscribe(waiting.metadata.id, interval=SOON)) as states:
            async for state in states:
                phases.append(AgentExecution.FromString(state).status.phase)

    looking = asyncio.create_task(look())
    await gate.reached.wait()
    runner = Runner(services, waiting.metadata.id)
    await runner.start()
    await runner.send(IN_PROGRESS)
    await runner.send(COMPLETED)
    gate.open.set()

    await asyncio.wait_for(looking, 120)
    assert phases == [EXECUTION_IN_PROGRESS, EXECUTION_COMPLETED]


async def test_a_phase_that_passes_while_a_slow_subscriber_takes_another_one_is_shown(
    services: Services, runner: Runner
) -> None:
    phases: list[int] = []
    async with aclosing(services.watches.subscribe(runner.execution_id, interval=SOON)) as states:
        await anext(states)
        await runner.send(IN_PROGRESS)
        phases.append(AgentExecution.FromString(await anext(states)).status.phase)
        # A foreign runner may say so; ours does not.
        await services.events.record(runner.execution_id, pending_again())
        await runner.send(COMPLETED)
        phases += [AgentExecution.FromString(state).status.phase async for state in states]

    assert phases == [EXECUTION_IN_PROGRESS, EXECUTION_PENDING, EXECUTION_COMPLETED]


def pending_again() -> ExecutionEvent:
    return ExecutionEvent(phase_changed=PhaseChanged(phase=EXECUTION_PENDING))


async def test_what_runs_has_no_place_in_the_queue(
    services: Services, runner: Runner, running: AgentExecution
) -> None:
    second = await services.executions.create(execution(session_id=running.spec.session_id))
    shown: list[tuple[int, int]] = []

    async def look() -> None:
        # So long an interval that it is not looked at in between.
        async with aclosing(
            services.watches.subscribe(second.metadata.id, interval=timedelta(minutes=1))
        ) as states:
            async for state in states:
                status = AgentExecution.FromString(state).status
                shown.append((status.phase, status.run.queue_position))

    looking = asyncio.create_task(look())
    await until(lambda: bool(shown))
    await runner.send(IN_PROGRESS, COMPLETED)
    await settled(services)
    next_runner = Runner(services, second.metadata.id)
    await next_runner.start()
    await next_runner.send(IN_PROGRESS)
    await next_runner.send(COMPLETED)
    await asyncio.wait_for(looking, 120)

    assert shown == [(EXECUTION_PENDING, 1), (EXECUTION_IN_PROGRESS, 0), (EXECUTION_COMPLETED, 0)]


async def test_what_is_read_for_a_slow_watcher_has_a_bound_in_bytes(
    world: World, services: Services, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        await runner.send(says(f"{number}", "x" * 250_000))
    await runner.send(COMPLETED)
    read, most = world.log.read, 0

    async def weighed(*args: Any, **kwargs: Any) -> Any:
        nonlocal most
        rows = await read(*args, **kwargs)
        most = max(most, sum(len(event) for _seq, event in rows))
        return rows

    monkeypatch.setattr(world.log, "read", weighed)
    async with aclosing(services.watches.watch(runner.execution_id)) as batches:
        assert [batch.last async for batch in batches][-1] == 63
    assert 0 < most < 2 << 20
