"""Sessions that are removed while somebody uses them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from unit.services.conftest import World
from unit.services.fakes.resources import COMPLETED, IN_PROGRESS, execution
from unit.services.fakes.runners import Runner
from unit.services.test_executions import finish, settled

from agent_runner.domain.paging import MOST
from agent_runner.errors import NotFoundError, UnavailableError
from agent_runner.ports.stores import StoredResource
from agent_runner.services.container import Services
from agent_runner.services.retention import RetentionPolicy
from agent_runner.v1.events_pb2 import ExecutionEvent, PhaseChanged
from agent_runner.v1.runner_service_pb2 import UploadToolResultHeader
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_CANCELLED


async def test_an_execution_stored_while_its_session_is_removed_is_taken_back(
    world: World, services: Services, running: AgentExecution, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = running.spec.session_id
    await finish(services, running.metadata.id)
    put = world.store.put

    async def after_the_removal(resource: StoredResource, *, expected: int) -> int:
        if resource.key.kind == "agent_execution" and not expected:
            monkeypatch.undo()
            await services.sessions.delete(session_id)
        return await put(resource, expected=expected)

    monkeypatch.setattr(world.store, "put", after_the_removal)
    with pytest.raises(NotFoundError, match=session_id):
        await services.executions.create(execution(session_id=session_id))
    await settled(services)

    assert nothing_is_left(world)


async def test_an_execution_begun_while_its_session_is_removed_goes_with_it(
    world: World, services: Services, running: AgentExecution, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = running.spec.session_id
    await finish(services, running.metadata.id)
    discard = services.sessions.discard

    async def after_one_more(resource_id: str) -> Any:
        await services.executions.create(execution(session_id=session_id))
        return await discard(resource_id)

    monkeypatch.setattr(services.sessions, "discard", after_one_more)
    await services.sessions.delete(session_id)
    await settled(services)

    assert world.workflows.started[1:] == world.workflows.terminated
    assert nothing_is_left(world)


async def test_none_of_a_very_long_queue_gets_the_turn_while_it_is_removed(
    world: World, services: Services, running: AgentExecution
) -> None:
    for _ in range(MOST + 20):
        await services.executions.create(execution(session_id=running.spec.session_id))
    for name in ("get", "put", "list", "delete"):
        setattr(world.store, name, letting_others_go_first(getattr(world.store, name)))

    removing = asyncio.create_task(services.sessions.delete(running.spec.session_id))
    while not removing.done():
        await asyncio.sleep(0)
        if running.metadata.id in world.workflows.cancelled and world.workflows.open:
            world.workflows.open.clear()
            change = PhaseChanged(phase=EXECUTION_CANCELLED)
            await services.events.record(running.metadata.id, ExecutionEvent(phase_changed=change))
    await removing
    await settled(services)

    assert world.workflows.started == [running.metadata.id]
    assert nothing_is_left(world)


def letting_others_go_first(method: Any) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return await method(*args, **kwargs)

    return call


def nothing_is_left(world: World) -> bool:
    kinds = {key.kind for key in world.store._resources}
    return not kinds & {"session", "session_turn", "agent_execution"} and not world.log._logs


@pytest.mark.parametrize("step", ["log.delete", "store.delete", "artifacts.delete_under", "store.put"])
@pytest.mark.parametrize("by", ["repeating", "a sweep", "removing the session"])
async def test_a_removal_that_breaks_off_anywhere_is_finished(
    world: World,
    services: Services,
    running: AgentExecution,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    by: str,
) -> None:
    await with_a_result(services, running.metadata.id)
    part, _, name = step.partition(".")
    fault = Fault(getattr(getattr(world, part), name))
    monkeypatch.setattr(getattr(world, part), name, fault)
    with pytest.raises(UnavailableError):
        await services.executions.delete(running.metadata.id)
    monkeypatch.undo()
    restarted = world.process()

    assert not (await restarted.reconciler.reconcile()).started  # it is not run again
    if by == "repeating" or (by == "a sweep" and step in ("artifacts.delete_under", "store.put")):
        await restarted.executions.delete(
            running.metadata.id
        )  # nothing was removed that a sweep could finish
    elif by == "a sweep":
        with pytest.raises(NotFoundError):
            await restarted.executions.get(running.metadata.id)
        await restarted.retention.sweep(RetentionPolicy(compact_after=None))
    await restarted.sessions.delete(running.spec.session_id)
    await settled(restarted)

    assert nothing_is_left(world)
    await restarted.aclose()


class Fault:
    """Fails instead of the first call."""

    def __init__(self, method: Any) -> None:
        self._method = method
        self._failed = False

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._failed:
            self._failed = True
            raise UnavailableError("not now")
        return await self._method(*args, **kwargs)


async def with_a_result(services: Services, execution_id: str) -> None:
    """Let it end, with something in the artifact store."""
    runner = Runner(services, execution_id)
    grant = await runner.start()
    text = b"a long result"
    header = UploadToolResultHeader(
        execution_id=execution_id,
        attempt=grant.attempt,
        token=grant.token,
        size_bytes=len(text),
        sha256=hashlib.sha256(text).digest(),
    )

    async def chunks() -> AsyncIterator[bytes]:
        yield text

    await services.results.keep(header, chunks())
    await runner.send(IN_PROGRESS, COMPLETED)
    await settled(services)
