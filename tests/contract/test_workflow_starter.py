"""What every way to start workflows keeps."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from agent_runner.adapters.temporal.connection import TemporalConnection
from agent_runner.adapters.temporal.managed import ManagedTemporal
from agent_runner.adapters.workflows.memory import MemoryWorkflowStarter
from agent_runner.adapters.workflows.temporal import PATIENCE, StarterSettings, TemporalWorkflowStarter
from agent_runner.errors import WorkflowServiceUnavailableError
from agent_runner.ports.workflows import TASK_QUEUE_MEMO, SessionRemains, WorkflowStarter, workflow_id
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution

SLOW = timedelta(minutes=2)
"""How long a service that is there may take on a busy machine."""
SOON = timedelta(seconds=1)


@dataclass
class Backend:
    starter: WorkflowStarter
    away: WorkflowStarter
    """The same without a service to talk to."""


@pytest.fixture(scope="module")
def temporal_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temporal")


@pytest.fixture(params=["memory", "temporal"])
async def backend(request: pytest.FixtureRequest, temporal_dir: Path) -> AsyncIterator[Backend]:
    if request.param == "memory":
        away = MemoryWorkflowStarter()
        away.available = False
        yield Backend(MemoryWorkflowStarter(), away)
        return
    async with ManagedTemporal(temporal_dir) as temporal:
        here = TemporalWorkflowStarter(TemporalConnection.managed(temporal.address), patience=SLOW)
        with socket.socket() as nobody:  # bound, not listening: connections are refused
            nobody.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{nobody.getsockname()[1]}"
            away = TemporalConnection.managed(address)
            yield Backend(here, TemporalWorkflowStarter(away, patience=SOON))


async def test_a_start_makes_the_execution_run_until_it_is_terminated(backend: Backend) -> None:
    starter = backend.starter
    assert not await starter.running("aex-1")

    await starter.start("aex-1", "ses-1", "agt-1", waiting_caller=False)

    assert await starter.running("aex-1")
    assert await starter.terminate("aex-1", "enough")
    assert not await starter.running("aex-1")
    assert not await starter.terminate("aex-1", "enough")


async def test_starting_again_does_nothing_while_it_runs_and_after(backend: Backend) -> None:
    starter = backend.starter
    await starter.start("aex-2", "ses-1", "agt-1", waiting_caller=False)
    await starter.start("aex-2", "ses-1", "agt-1", waiting_caller=False)
    assert await starter.terminate("aex-2", "enough")

    await starter.start("aex-2", "ses-1", "agt-1", waiting_caller=False)

    assert not await starter.running("aex-2")


async def test_a_cancel_finds_only_what_runs(backend: Backend) -> None:
    starter = backend.starter
    assert not await starter.cancel("aex-3")
    await starter.start("aex-3", "ses-1", "agt-1", waiting_caller=False)
    assert await starter.cancel("aex-3")
    await starter.start("aex-31", "ses-1", "agt-1", waiting_caller=False)
    await starter.terminate("aex-31", "enough")
    assert not await starter.cancel("aex-31")


async def test_many_starts_of_one_execution_at_once_are_one(backend: Backend) -> None:
    await asyncio.gather(
        *(backend.starter.start("aex-4", "ses-1", "agt-1", waiting_caller=True) for _ in range(8))
    )
    assert await backend.starter.running("aex-4")
    await backend.starter.terminate("aex-4", "enough")


def test_callers_are_told_within_five_seconds() -> None:
    assert timedelta(seconds=5) > PATIENCE


async def test_a_service_that_is_away_is_told_when_the_patience_is_over(backend: Backend) -> None:
    async with asyncio.timeout(120):
        while not await backend.starter.reachable():  # noqa: ASYNC110 (it may be slow, and is asked again)
            await asyncio.sleep(0.1)
    assert not await backend.away.reachable()

    async with asyncio.timeout(120):
        with pytest.raises(WorkflowServiceUnavailableError, match="cannot be reached"):
            await backend.away.start("aex-5", "ses-1", "agt-1", waiting_caller=False)


async def test_a_service_that_goes_away_later_is_told_when_the_patience_is_over(temporal_dir: Path) -> None:
    temporal = ManagedTemporal(temporal_dir)
    await temporal.start()
    connection = TemporalConnection.managed(temporal.address)
    await TemporalWorkflowStarter(connection, patience=SLOW).start(
        "aex-6", "ses-1", "agt-1", waiting_caller=False
    )
    await temporal.stop()

    starter = TemporalWorkflowStarter(connection, patience=SOON)
    async with asyncio.timeout(120):
        with pytest.raises(WorkflowServiceUnavailableError):
            await starter.start("aex-7", "ses-1", "agt-1", waiting_caller=False)
        with pytest.raises(WorkflowServiceUnavailableError):
            await starter.cancel("aex-6")


@pytest.mark.parametrize("full", [False, True])
async def test_the_argument_holds_ids_or_all_but_the_token(temporal_dir: Path, full: bool) -> None:
    execution = AgentExecution()
    execution.metadata.id, execution.metadata.name, execution.metadata.org = "aex-8", "say hello", "acme"
    execution.spec.message = "hello"
    execution.spec.execution_config.options.limits.tool_calls = 3
    execution.spec.callback_token = b"token"
    async with ManagedTemporal(temporal_dir) as temporal:
        connection = TemporalConnection.managed(temporal.address)
        settings = StarterSettings(full_argument=full)
        starter = TemporalWorkflowStarter(connection, settings, patience=SLOW)
        name = f"aex-8-{full}"
        await starter.start(name, "ses-1", "agt-1", waiting_caller=True, execution=execution)

        handle = (await connection.client()).get_workflow_handle(workflow_id(name))
        history = await handle.fetch_history()
        started = history.events[0].workflow_execution_started_event_attributes
        payload, _options = started.input.payloads
        assert payload.metadata["encoding"] == b"json/protobuf"
        assert b"callbackToken" not in payload.data
        assert b"limits" not in payload.data
        assert (b"hello" in payload.data.replace(b"say hello", b"")) is full
        assert b"acme" in payload.data
        assert TASK_QUEUE_MEMO in started.memo.fields
        assert started.memo.fields[TASK_QUEUE_MEMO].data == b'"agent_execution_runner"'


async def test_an_execution_that_goes_on_gets_another_run(backend: Backend) -> None:
    starter = backend.starter
    await starter.start("aex-9", "ses-1", "agt-1", waiting_caller=False)
    await starter.start("aex-9", "ses-1", "agt-1", waiting_caller=False, again=True)  # it runs: nothing
    assert await starter.terminate("aex-9", "enough")
    assert not await starter.running("aex-9")

    await starter.start("aex-9", "ses-1", "agt-1", waiting_caller=False, again=True)

    assert await starter.running("aex-9")
    await starter.terminate("aex-9", "enough")


async def test_what_is_left_of_a_session_is_handed_on_once(backend: Backend) -> None:
    remains = SessionRemains("ses-10", "thread-ses-10")
    await asyncio.gather(*(backend.starter.clean_up(remains) for _ in range(3)))
    with pytest.raises(WorkflowServiceUnavailableError):
        await backend.away.clean_up(remains)


async def test_a_runner_is_asked_for_files_and_nobody_is_when_the_service_is_away(backend: Backend) -> None:
    await backend.starter.ask_for_files("task-1")
    with pytest.raises(WorkflowServiceUnavailableError):
        await backend.away.ask_for_files("task-2")


async def test_stores_that_share_a_namespace_see_their_own_workflows(temporal_dir: Path) -> None:
    async with ManagedTemporal(temporal_dir) as temporal:
        connection = TemporalConnection.managed(temporal.address)
        ours, theirs, nobodys = [
            TemporalWorkflowStarter(connection, StarterSettings(owner=owner), patience=SLOW)
            for owner in ("us", "them", "")
        ]
        for name, starter in (("aex-ours", ours), ("aex-theirs", theirs), ("aex-nobodys", nobodys)):
            await starter.start(name, "ses-1", "agt-1", waiting_caller=False)

        async with asyncio.timeout(120):  # lists of workflows are a little late
            while [name async for name in ours.unended()] != ["aex-ours"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert [name async for name in nobodys.unended()] == []
        await ours.terminate("aex-ours", "enough")
        async with asyncio.timeout(120):
            while [name async for name in ours.unended()]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        for name, starter in (("aex-theirs", theirs), ("aex-nobodys", nobodys)):
            await starter.terminate(name, "enough")


async def test_what_temporal_refuses_is_told_in_its_words(temporal_dir: Path) -> None:
    async with ManagedTemporal(temporal_dir) as temporal:
        starter = TemporalWorkflowStarter(
            TemporalConnection.managed(temporal.address, "nobodys"), patience=SLOW
        )
        with pytest.raises(WorkflowServiceUnavailableError, match=r"refuses: .*nobodys"):
            await starter.start("aex-9", "ses-1", "agt-1", waiting_caller=False)


async def test_what_is_too_large_for_an_argument_goes_with_ids_alone(temporal_dir: Path) -> None:
    execution = AgentExecution()
    execution.metadata.id, execution.metadata.org = "aex-10", "acme"
    execution.spec.message = "ü" * (1 << 19)  # six bytes each, as JSON
    async with ManagedTemporal(temporal_dir) as temporal:
        connection = TemporalConnection.managed(temporal.address)
        starter = TemporalWorkflowStarter(connection, StarterSettings(full_argument=True), patience=SLOW)
        await starter.start("aex-10", "ses-1", "agt-1", waiting_caller=False, execution=execution)

        handle = (await connection.client()).get_workflow_handle(workflow_id("aex-10"))
        started = (await handle.fetch_history()).events[0].workflow_execution_started_event_attributes
        [payload, _options] = started.input.payloads
        assert json.loads(payload.data)["metadata"] == {"id": "aex-10", "org": "acme"}
        assert len(payload.data) < 1000
