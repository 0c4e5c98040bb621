"""What a crash or an outage has left is found and mended, at a price that does not grow with the queues."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from unit.services.conftest import World
from unit.services.fakes.resources import IN_PROGRESS, execution
from unit.services.fakes.runners import Runner
from unit.services.test_executions import finish

from agent_runner.errors import FailedPreconditionError, UnavailableError
from agent_runner.ports.stores import StoredResource
from agent_runner.services import reconciling
from agent_runner.services.container import Services
from agent_runner.services.execution_records import OPEN, fields_of, key_of
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_FAILED,
    EXECUTION_PENDING,
)

# After a restart


async def test_a_restart_goes_on_with_the_queue(
    world: World, services: Services, running: AgentExecution
) -> None:
    second = await services.executions.create(execution(session_id=running.spec.session_id))
    services.runs.hand_on = lambda session_id: None  # type: ignore[method-assign]  # dies before it hands on
    await finish(services, running.metadata.id)
    assert world.workflows.started == [running.metadata.id]

    done = await world.process().reconciler.reconcile()

    assert done.started == 1
    assert world.workflows.started == [running.metadata.id, second.metadata.id]


async def test_an_execution_that_was_stored_and_not_started_is_started(
    world: World, services: Services, running: AgentExecution
) -> None:
    world.workflows.started.clear()
    world.workflows.open.clear()

    await world.process().reconciler.reconcile()

    assert world.workflows.started == [running.metadata.id]


async def test_a_run_whose_workflow_is_gone_goes_on_but_not_for_ever(
    world: World, services: Services, running: AgentExecution
) -> None:
    runner = Runner(services, running.metadata.id)
    await runner.start()
    await runner.send(IN_PROGRESS)

    for _ in range(5):
        world.workflows.open.clear()
        assert (await services.reconciler.reconcile()).restarted == 1
        assert world.workflows.open == {running.metadata.id}
    world.workflows.open.clear()
    assert (await services.reconciler.reconcile()).failed == 0
    world.clock.advance(timedelta(seconds=61))
    assert (await services.reconciler.reconcile()).failed == 1

    assert (await services.executions.get(running.metadata.id)).status.phase == EXECUTION_FAILED


async def test_a_start_that_is_refused_counts_as_one(
    world: World, services: Services, running: AgentExecution, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refusing(*_args: Any, **_more: Any) -> None:
        raise FailedPreconditionError("This one cannot be started.")

    world.workflows.open.clear()
    monkeypatch.setattr(world.workflows, "start", refusing)
    world.clock.advance(timedelta(seconds=61))

    ended = [(await services.reconciler.reconcile()).failed for _ in range(6)]

    assert ended == [0, 0, 0, 0, 0, 1]


async def test_a_cancel_that_was_not_delivered_is_delivered_later(
    world: World, services: Services, running: AgentExecution
) -> None:
    world.workflows.away = True
    asked = await services.executions.cancel(running.metadata.id)
    assert asked.status.run.cancel_requested
    world.workflows.away = False

    await services.reconciler.reconcile()

    assert world.workflows.cancelled == [running.metadata.id]


async def test_reconciling_twice_changes_nothing_more(world: World, running: AgentExecution) -> None:
    services = world.process()

    assert (await services.reconciler.reconcile()).started == 0
    assert world.workflows.started == [running.metadata.id]


async def test_an_index_that_lags_behind_is_mended(
    world: World, services: Services, running: AgentExecution
) -> None:
    stale = (await world.store.list("agent_execution"))[0]
    await finish(services, running.metadata.id)
    now = (await world.store.list("agent_execution"))[0]
    world.store._resources[stale.key] = type(now)(
        now.key, now.org, now.slug, now.body, now.version, stale.fields
    )

    other = world.process()
    await other.reconciler.reconcile()

    assert (await world.store.list("agent_execution"))[0].fields["phase"] == "EXECUTION_COMPLETED"


# Lists that lag behind


async def fields(world: World, execution_id: str) -> Mapping[str, str]:
    return (await world.store.get(key_of(execution_id))).fields


def listed_as(world: World, execution_id: str, **fields: str) -> None:
    """Let lists say something else of an execution than its log does."""
    key = key_of(execution_id)
    world.store._resources[key] = replace(world.store._resources[key], fields=fields)


async def cancel_unlisted(world: World, services: Services, execution_id: str) -> None:
    """Cancel an execution while its record cannot be written."""
    put = world.store.put

    async def away(resource: StoredResource, *, expected: int) -> int:
        raise UnavailableError("the store")

    world.store.put = away  # type: ignore[method-assign]
    with suppress(UnavailableError):  # the answer; the log has it
        await services.executions.cancel(execution_id)
    world.store.put = put  # type: ignore[method-assign]


async def test_one_that_waited_and_ended_unlisted_is_mended_in_its_turn(
    world: World, services: Services, running: AgentExecution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "_COMPARED", 4)
    made = [await services.executions.create(execution(session_id=running.spec.session_id)) for _ in range(9)]
    ended = made[-1].metadata.id
    await services.reconciler.reconcile()
    await cancel_unlisted(world, services, ended)
    assert OPEN in await fields(world, ended)

    for _ in range(3):  # of 10, so many as are due
        await services.reconciler.reconcile()

    assert await fields(world, ended) == {**fields_of(made[-1], EXECUTION_CANCELLED), "log": "full"}


async def test_what_ended_but_is_in_the_queue_of_its_session_is_taken_out_of_it(
    world: World, services: Services, running: AgentExecution
) -> None:
    session_id = running.spec.session_id
    made = [running, *[await services.executions.create(execution(session_id=session_id)) for _ in range(3)]]
    for one in made:
        await finish(services, one.metadata.id)
    await services.reconciler.reconcile()
    other = world.process()
    await other.reconciler.reconcile()
    for one in made:
        listed_as(world, one.metadata.id, **await fields(world, one.metadata.id), open=session_id)

    await other.reconciler.reconcile()

    assert await world.store.values("agent_execution", OPEN) == []
    assert (await fields(world, running.metadata.id))["phase"] == "EXECUTION_COMPLETED"


async def test_what_is_missing_in_the_queue_of_its_session_is_put_into_it(
    world: World, services: Services, running: AgentExecution
) -> None:
    second = await services.executions.create(execution(session_id=running.spec.session_id))
    for one in (running, second):
        listed_as(world, one.metadata.id, session_id=one.spec.session_id, phase="EXECUTION_PENDING")
    world.workflows.open.clear()

    other = world.process()
    done = await other.reconciler.reconcile()

    assert done.started == 1
    assert (await fields(world, second.metadata.id))[OPEN] == running.spec.session_id
    assert (await other.executions.get(second.metadata.id)).status.run.queue_position == 1


async def test_an_execution_without_a_session_is_started(
    world: World, services: Services, running: AgentExecution
) -> None:
    alone = execution(agent_id=running.spec.agent_id)
    alone.metadata.id = running.metadata.id[:-4] + "0000"
    stored = fields_of(alone, EXECUTION_PENDING)
    body = alone.SerializeToString()
    await world.store.put(StoredResource(key_of(alone.metadata.id), "", "", body, fields=stored), expected=0)

    assert (await services.reconciler.reconcile()).started == 1
    assert world.workflows.started == [running.metadata.id, alone.metadata.id]


# What it costs


class Reads:
    """Counts what is read from the stores.

    Attributes:
        logs: of how many executions the log was looked at, each time counted.
        rows: how many resources were listed.
    """

    def __init__(self, world: World) -> None:
        self.logs: list[str] = []
        self.rows = 0
        head, read, rows = world.log.head, world.log.read, world.store.list

        async def counted_head(execution_id: str) -> Any:
            self.logs.append(execution_id)
            return await head(execution_id)

        async def counted_read(execution_id: str, **more: Any) -> Any:
            self.logs.append(execution_id)
            return await read(execution_id, **more)

        async def counted_list(*args: Any, **more: Any) -> Any:
            found = await rows(*args, **more)
            self.rows += len(found)
            return found

        world.log.head, world.log.read = counted_head, counted_read  # type: ignore[method-assign]
        world.store.list = counted_list  # type: ignore[method-assign]

    def taken(self) -> tuple[int, int]:
        """(logs, rows) since the last time."""
        counted, self.logs, self.rows = (len(self.logs), self.rows), [], 0
        return counted


async def test_what_a_look_reads_does_not_grow_with_how_many_wait(
    world: World, services: Services, running: AgentExecution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "_COMPARED", 4)
    second = await services.executions.create(execution(agent_id=running.spec.agent_id))
    reads, first, later = Reads(world), [], []

    for _ in range(3):
        for one in (running, second):
            for _ in range(20):
                waiting = execution(session_id=one.spec.session_id, callback_token=b"token")
                await services.executions.create(waiting)
        replica = world.process(replicas=True)  # which asks the stores for what it has in memory, too
        reads.taken()
        for looks in (first, later, later):
            await replica.reconciler.reconcile()
            looks.append(reads.taken())

    assert [logs > 40 * round_ for round_, (logs, _) in enumerate(first, start=1)] == [True] * 3
    assert len(set(later)) == 1
    logs, rows = later[0]
    assert rows == 4 + 2  # those due, and the first of each session
    assert logs <= 2 * rows + 2 * 2


async def test_temporal_is_not_asked_about_what_is_paused(
    world: World, services: Services, running: AgentExecution, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.workflows.open.clear()
    await services.executions.pause(running.metadata.id)
    asked: list[str] = []
    is_running = world.workflows.running

    async def noted(execution_id: str) -> bool:
        asked.append(execution_id)
        return await is_running(execution_id)

    monkeypatch.setattr(world.workflows, "running", noted)
    await services.reconciler.reconcile()
    assert asked == []

    await services.executions.resume(running.metadata.id)
    asked.clear()
    await services.reconciler.reconcile()
    assert asked == [running.metadata.id]


# Callers and workflows


async def test_a_workflow_without_an_execution_is_terminated_at_the_second_look(
    world: World, services: Services
) -> None:
    world.workflows.open.add("aex-gone")
    assert (await services.reconciler.reconcile()).orphans == 0
    assert (await services.reconciler.reconcile()).orphans == 1
    assert world.workflows.terminated == ["aex-gone"]


async def test_a_caller_who_was_not_told_is_told_once(
    world: World, services: Services, running: AgentExecution
) -> None:
    waited_for = await services.executions.create(
        execution(agent_id=running.spec.agent_id, callback_token=b"token")
    )
    await finish(services, waited_for.metadata.id)  # its workflow is still there, and will see to it
    assert (await services.reconciler.reconcile()).told == 0
    world.workflows.open.discard(waited_for.metadata.id)

    assert (await services.reconciler.reconcile()).told == 1
    assert world.workflows.told == [waited_for.metadata.id]
    await services.runs.told(waited_for.metadata.id)
    assert (await services.reconciler.reconcile()).told == 0


async def test_what_is_mended_is_counted(world: World, services: Services, running: AgentExecution) -> None:
    world.workflows.open.clear()
    await services.reconciler.reconcile()

    counted = {metric.name: metric for metric in await services.metrics.metrics()}
    assert counted["reconciled_started"].samples == [({}, 1)]
    assert counted["reconciled_started"].counter
    phases = {labels["phase"]: number for labels, number in counted["executions"].samples}
    assert phases["pending"] == 1


async def test_a_session_that_cannot_be_mended_does_not_keep_others_from_it(
    world: World, services: Services, running: AgentExecution, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [await services.executions.create(execution(agent_id=running.spec.agent_id)) for _ in range(2)]
    ids = sorted(made.metadata.id for made in (running, *others))
    world.workflows.open.clear()
    start = world.workflows.start

    async def refusing(execution_id: str, *args: Any, **kwargs: Any) -> None:
        if execution_id == ids[0]:
            raise FailedPreconditionError("This one cannot be started.")
        await start(execution_id, *args, **kwargs)

    monkeypatch.setattr(world.workflows, "start", refusing)
    await services.reconciler.reconcile()

    assert world.workflows.open == set(ids[1:])
