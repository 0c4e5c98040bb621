"""Logs are compacted and sessions removed by age."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from datetime import timedelta

import pytest
from unit.services.conftest import World
from unit.services.fakes.resources import (
    COMPLETED,
    IN_PROGRESS,
    called,
    calls,
    execution,
    goes_on,
    has_said,
    says,
)
from unit.services.fakes.runners import Runner
from unit.services.test_executions import finish

from agent_runner.domain.compaction import compact
from agent_runner.domain.status import fold
from agent_runner.services.container import Services
from agent_runner.services.retention import RetentionPolicy
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.execution_service_pb2 import WatchExecutionResponse
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus

DAY = timedelta(days=1)


async def watched(services: Services, execution_id: str, after_seq: int = 0) -> list[ExecutionEvent]:
    return [
        event
        async for batch in services.watches.watch(execution_id, after_seq)
        for event in WatchExecutionResponse.FromString(batch.payload).events
    ]


async def test_an_old_log_is_compacted_and_watched_from_anywhere(
    world: World, services: Services, running: AgentExecution
) -> None:
    name = running.metadata.id
    runner = Runner(services, name)
    await runner.start()
    pieces = [goes_on("a", f"{number} ") for number in range(100)]
    await runner.send(IN_PROGRESS, says("a"), *pieces, has_said("a"), COMPLETED)
    whole = await watched(services, name)
    before = (await services.executions.get(name)).status

    assert (await services.retention.sweep(RetentionPolicy())).compacted == 0
    world.clock.advance(timedelta(hours=2))
    assert (await services.retention.sweep(RetentionPolicy())).compacted == 1
    assert (await services.retention.sweep(RetentionPolicy())).compacted == 0

    fresh = world.process()
    assert len(await watched(fresh, name)) == len(whole) - 100
    for read in range(len(whole) + 1):
        seen = fold(AgentExecutionStatus(), whole[:read])
        rest = await watched(fresh, name, read)
        assert fold(seen, rest).messages == before.messages
        assert all(event.seq > read for event in rest)
    assert (await fresh.executions.get(name)).status.messages == before.messages


async def test_sessions_nobody_uses_are_removed_by_age(
    world: World, services: Services, running: AgentExecution
) -> None:
    used = running.spec.session_id
    other = await services.executions.create(execution(agent_id=running.spec.agent_id))
    await finish(services, other.metadata.id)
    policy = RetentionPolicy(compact_after=None, sessions_for=30 * DAY)
    world.clock.advance(31 * DAY)

    # One that runs stays, however old it is.
    assert (await services.retention.sweep(policy)).removed == 1
    assert [row.key.id for row in await world.store.list("session")] == [used]

    await finish(services, running.metadata.id)
    assert (await services.retention.sweep(policy)).removed == 0
    world.clock.advance(31 * DAY)
    assert (await services.retention.sweep(policy)).removed == 1
    assert not await world.store.list("agent_execution")


async def test_nothing_is_removed_unless_it_is_asked_for(
    world: World, services: Services, running: AgentExecution
) -> None:
    await finish(services, running.metadata.id)
    world.clock.advance(1000 * DAY)
    assert (await services.retention.sweep(RetentionPolicy())).removed == 0


async def test_a_session_in_which_something_runs_stays_whatever_came_after_it(
    world: World, services: Services, running: AgentExecution
) -> None:
    later = await services.executions.create(execution(session_id=running.spec.session_id))
    await services.executions.cancel(later.metadata.id)
    world.clock.advance(31 * DAY)

    policy = RetentionPolicy(compact_after=None, sessions_for=30 * DAY)
    assert (await services.retention.sweep(policy)).removed == 0


async def test_an_id_somebody_chose_does_not_make_a_session_look_old(
    world: World, services: Services, running: AgentExecution
) -> None:
    await finish(services, running.metadata.id)
    chosen = execution(session_id=running.spec.session_id)
    chosen.metadata.id = "aex-zzzzzzzz"
    await services.executions.create(chosen)
    await finish(services, chosen.metadata.id)
    world.clock.advance(31 * DAY)
    newest = await services.executions.create(execution(session_id=running.spec.session_id))
    await finish(services, newest.metadata.id)

    policy = RetentionPolicy(compact_after=None, sessions_for=30 * DAY)
    assert (await services.retention.sweep(policy)).removed == 0


async def test_a_long_log_is_compacted_beside_the_event_loop_and_one_without_pieces_is_not_written_anew(
    world: World, services: Services, running: AgentExecution, monkeypatch: pytest.MonkeyPatch
) -> None:
    compacted_in: list[str] = []

    def compacting(events: Iterable[ExecutionEvent]) -> list[ExecutionEvent]:
        compacted_in.append(threading.current_thread().name)
        return compact(events)

    async def written(execution_id: str, events: object) -> None:
        raise AssertionError("written anew, and nothing is shorter")

    monkeypatch.setattr("agent_runner.services.retention.compact", compacting)
    monkeypatch.setattr(world.log, "replace", written)
    await finish(services, running.metadata.id, calls("c"), called("c", "x" * 100_000))
    world.clock.advance(timedelta(hours=2))

    assert (await services.retention.sweep(RetentionPolicy())).compacted == 0
    assert (await services.retention.sweep(RetentionPolicy())).compacted == 0
    assert len(compacted_in) == 1  # it is not looked at again
    assert compacted_in != [threading.main_thread().name]
