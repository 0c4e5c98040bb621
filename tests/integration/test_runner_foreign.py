"""Other people's halves: their workflow and server with our runner, their caller waiting for our end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from integration.fakes.runner_stack import Stack, parts, stack
from integration.fakes.servers import StigmerServer
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowFailureError
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from agent_runner.adapters.temporal.connection import TemporalConnection
from agent_runner.adapters.temporal.managed import ManagedTemporal
from agent_runner.runner.worker import RunnerWorker
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_COMPLETED,
    EXECUTION_FAILED,
    EXECUTION_IN_PROGRESS,
)
from ai.stigmer.agentic.session.v1.api_pb2 import Session

TALK = "turns: [{steps: [{text: '" + "word " * 200 + "', delay_ms: 10, chunk_tokens: 1}]}]"


@workflow.defn(name="foreign")
class ForeignWorkflow:
    """The steps and options of Stigmer's own workflow, by the SDK's default data converter."""

    @workflow.run
    async def run(self, execution: AgentExecution) -> AgentExecutionStatus:
        thread_id = await workflow.execute_activity(
            "EnsureThread",
            args=[execution.spec.session_id, execution.spec.agent_id],
            result_type=str,
            task_queue="agent_execution_runner",
            schedule_to_start_timeout=timedelta(seconds=60),
            start_to_close_timeout=timedelta(seconds=30),
            retry_policy=RetryPolicy(initial_interval=timedelta(seconds=5), maximum_attempts=3),
        )
        return await workflow.execute_activity(
            "ExecuteGraphton",
            args=[execution, thread_id],
            result_type=AgentExecutionStatus,
            task_queue="agent_execution_runner",
            schedule_to_start_timeout=timedelta(seconds=60),
            start_to_close_timeout=timedelta(seconds=600),
            heartbeat_timeout=timedelta(seconds=30),
            retry_policy=RetryPolicy(maximum_attempts=1),
        )


@asynccontextmanager
async def foreign_world(
    tmp_path: Path, script: str, message: str = "hello"
) -> AsyncIterator[tuple[StigmerServer, Callable[[], Any]]]:
    """Temporal, a server of the Stigmer API alone, and our runner; the function runs the workflow."""
    (tmp_path / "script.yaml").write_text(script)
    agent, session, execution = Agent(), Session(), AgentExecution()
    agent.metadata.id = "agt-1"
    agent.spec.instructions = "Do what the script says."
    session.metadata.id, session.spec.agent_instance_id = "ses-1", "ain-1"
    execution.metadata.id, execution.metadata.name = "aex-1", "foreign"
    execution.spec.session_id, execution.spec.message = "ses-1", message
    execution.spec.execution_config.model_name = f"script:{tmp_path / 'script.yaml'}"
    server = StigmerServer(execution, session, agent)
    await server.start()
    async with ManagedTemporal(tmp_path / "temporal") as temporal, parts(server.address, tmp_path) as made:
        ours = await TemporalConnection.managed(temporal.address).wait()
        theirs = await Client.connect(temporal.address)
        argument = AgentExecution()
        argument.CopyFrom(execution)

        async def run() -> AgentExecutionStatus:
            return await theirs.execute_workflow(
                "foreign", argument, id="foreign", task_queue="theirs", result_type=AgentExecutionStatus
            )

        worker = Worker(
            theirs,
            task_queue="theirs",
            workflows=[ForeignWorkflow],
            workflow_runner=UnsandboxedWorkflowRunner(),
        )
        async with worker, RunnerWorker(ours, made):
            yield server, run
    await server.stop()


async def test_our_runner_serves_a_foreign_workflow_and_a_foreign_server(tmp_path: Path) -> None:
    async with foreign_world(tmp_path, TALK) as (server, run):
        result = await run()

        assert result.phase == EXECUTION_COMPLETED
        assert server.execution.status.phase == EXECUTION_COMPLETED
        assert [m.content for m in server.execution.status.messages] == ["hello", "word " * 200]
        assert server.execution.status.started_at and server.execution.status.completed_at
        assert server.updates[-1].phase == EXECUTION_COMPLETED
        assert len(server.updates) > 5  # more than the phases; one under way keeps the next ones waiting
        texts = [u.messages[-1].content for u in server.updates if len(u.messages) == 2]
        assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
        assert not any(update.HasField("run") for update in server.updates)


async def test_a_foreign_server_that_is_away_gets_the_end_when_it_is_back(tmp_path: Path) -> None:
    async with foreign_world(tmp_path, TALK) as (server, run):
        running = asyncio.create_task(run())
        while not server.updates:  # noqa: ASYNC110 (what the server sees has no event)
            await asyncio.sleep(0.01)
        await server.stop()
        await asyncio.sleep(2)
        assert not running.done()
        assert server.execution.status.phase == EXECUTION_IN_PROGRESS
        await server.start()
        assert (await running).phase == EXECUTION_COMPLETED
        assert server.execution.status.messages[-1].content == "word " * 200


async def test_a_failure_is_stored_at_the_foreign_server_and_raised_in_its_workflow(tmp_path: Path) -> None:
    script = "turns: [{steps: [{text: I try, fail: {kind: no_key, after_tokens: 1}}]}]"
    async with foreign_world(tmp_path, script) as (server, run):
        with pytest.raises(WorkflowFailureError) as failure:
            await run()
        assert server.execution.status.phase == EXECUTION_FAILED
        assert "key" in server.execution.status.error
        assert isinstance(failure.value.cause, ActivityError)
        assert "key" in str(failure.value.cause.cause)


async def test_a_finished_execution_is_not_run_again(tmp_path: Path) -> None:
    async with foreign_world(tmp_path, TALK) as (server, run):
        server.execution.status.phase = EXECUTION_COMPLETED
        server.execution.status.messages.add(content="said before")
        result = await run()
        assert [m.content for m in result.messages] == ["said before"]
        assert not server.updates


# A caller who waits


class Waiting:
    """An activity that is completed from elsewhere, as Stigmer's agent call is."""

    def __init__(self) -> None:
        self.token: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    @activity.defn(name="wait")
    async def wait(self) -> Any:
        self.token.set_result(activity.info().task_token)
        activity.raise_complete_async()


@workflow.defn(name="caller")
class CallerWorkflow:
    @workflow.run
    async def run(self) -> Any:
        return await workflow.execute_activity(
            "wait",
            start_to_close_timeout=timedelta(hours=24),
            retry_policy=RetryPolicy(maximum_attempts=1),
        )


@asynccontextmanager
async def caller(world: Stack) -> AsyncIterator[tuple[bytes, asyncio.Task[Any]]]:
    """The token of a caller who waits, and what they get."""
    theirs = await Client.connect(world.temporal.address)
    waiting = Waiting()
    async with Worker(
        theirs,
        task_queue="callers",
        workflows=[CallerWorkflow],
        activities=[waiting.wait],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        answer = asyncio.create_task(theirs.execute_workflow("caller", id="caller", task_queue="callers"))
        yield await waiting.token, answer


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Stack]:
    async with stack(tmp_path) as made:
        yield made


async def test_a_waiting_caller_gets_the_final_execution(world: Stack) -> None:
    await world.run_worker()
    agent = await world.agent("turns: [{steps: [the answer]}]")
    async with caller(world) as (token, answer):
        created = await world.create(agent, token=token)

        result = await answer

        execution = ParseDict(result, AgentExecution())
        assert execution.metadata.id == created.metadata.id == result["metadata"]["id"]
        assert result["status"]["phase"] == EXECUTION_COMPLETED
        assert execution.status.messages[-1].content == "the answer"
        assert "callback_token" not in result["spec"]
        for event in await world.history(created):
            assert token not in event.SerializeToString()


async def test_a_waiting_caller_gets_a_failure_as_failure(world: Stack) -> None:
    await world.run_worker()
    agent = await world.agent("turns: [{steps: [{text: I try, fail: {kind: no_key, after_tokens: 1}}]}]")
    async with caller(world) as (token, answer):
        await world.create(agent, token=token)

        with pytest.raises(WorkflowFailureError) as failure:
            await answer

        cause = failure.value.cause
        assert isinstance(cause, ActivityError) and isinstance(cause.cause, ApplicationError)
        assert "key" in cause.cause.message and cause.cause.type == "ExecutionFailed"


async def test_a_waiting_caller_learns_of_a_cancel(world: Stack) -> None:
    agent = await world.agent("turns: [{steps: [the answer]}]")
    async with caller(world) as (token, answer):
        created = await world.create(agent, token=token)
        await world.server.services.executions.cancel(created.metadata.id, "enough")

        with pytest.raises(WorkflowFailureError) as failure:
            await answer

        assert isinstance(failure.value.cause, ActivityError)
        assert isinstance(failure.value.cause.cause, ApplicationError)
        assert failure.value.cause.cause.type == "ExecutionCancelled"


async def test_a_token_nobody_waits_for_does_not_fail_the_execution(world: Stack) -> None:
    await world.run_worker()
    agent = await world.agent("turns: [{steps: [the answer]}]")
    created = await world.create(agent, token=b"nobody's")

    assert (await world.ended(created)).status.phase == EXECUTION_COMPLETED
    await world.handle(created).result()
