"""Executions as workflows of Temporal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import structlog
from temporalio.client import WorkflowExecutionStatus, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from agent_runner.adapters.temporal.connection import TemporalConnection
from agent_runner.adapters.temporal.payloads import DATA_CONVERTER
from agent_runner.errors import WorkflowServiceUnavailableError
from agent_runner.ports.workflows import (
    CLEANUP_WORKFLOW_TYPE,
    FILES_WORKFLOW_TYPE,
    OWNER_MEMO,
    RUNNER_TASK_QUEUE,
    TASK_QUEUE_MEMO,
    WORKFLOW_TASK_QUEUE,
    WORKFLOW_TYPE,
    InvokeOptions,
    SessionRemains,
    workflow_id,
)
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution

log = structlog.get_logger(__name__)

PATIENCE = timedelta(seconds=4.5)
_LISTING = timedelta(seconds=60)
_MOST_ARGUMENT_BYTES = 3 << 19
"""Temporal takes 2 MiB, unless told otherwise, and a workflow that it refuses would never begin."""
_AWAY = (RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED)


@dataclass(frozen=True, slots=True)
class StarterSettings:
    """How workflows are started.

    Attributes:
        execution_timeout: the longest one attempt of an execution may take.
        heartbeat_timeout: silence after which an execution is given to another worker.
        full_argument: put the whole execution into the workflow's argument, for foreign runners, which
            do not load it by id. Its message and runtime variables are then readable in the workflow's
            history; secret ones are masked there, and so unknown to such a runner. One of more than 1.5 MiB
            as JSON goes with ids alone, and cannot be run by such a runner.
        owner: names the store, among those that share the namespace; without it `unended` finds nothing.
    """

    workflow_task_queue: str = WORKFLOW_TASK_QUEUE
    runner_task_queue: str = RUNNER_TASK_QUEUE
    execution_timeout: timedelta = timedelta(hours=24)
    heartbeat_timeout: timedelta = timedelta(seconds=5)
    max_attempts: int = 20
    full_argument: bool = False
    owner: str = ""


class TemporalWorkflowStarter:
    """Starts, cancels and ends the workflows of executions.

    Starting is eager: where the workflow worker shares this process and this connection, the first
    step runs without another trip to the server.

    Args:
        patience: how long a call may take; then the service counts as away.
    """

    def __init__(
        self,
        connection: TemporalConnection,
        settings: StarterSettings | None = None,
        *,
        patience: timedelta = PATIENCE,
    ) -> None:
        self._connection = connection
        self._settings = settings or StarterSettings()
        self._patience = patience

    async def start(
        self,
        execution_id: str,
        session_id: str,
        agent_id: str,
        *,
        waiting_caller: bool,
        execution: AgentExecution | None = None,
        again: bool = False,
        only_tell_caller: bool = False,
    ) -> None:
        argument = self._argument(execution_id, session_id, agent_id, execution)
        settings = self._settings
        options = InvokeOptions(
            waiting_caller=waiting_caller,
            execution_timeout_seconds=settings.execution_timeout.total_seconds(),
            heartbeat_timeout_seconds=settings.heartbeat_timeout.total_seconds(),
            max_attempts=settings.max_attempts,
            only_tell_caller=only_tell_caller,
        )
        async with self._calling():
            client = await self._connection.client(self._patience)
            try:
                await client.start_workflow(
                    WORKFLOW_TYPE,
                    args=[argument, options],
                    id=workflow_id(execution_id),
                    task_queue=settings.workflow_task_queue,
                    memo=self._memo(),
                    id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE
                    if again
                    else WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    request_eager_start=True,
                    rpc_timeout=self._patience,
                )
            except WorkflowAlreadyStartedError:
                return

    async def cancel(self, execution_id: str) -> bool:
        async with self._calling():
            handle = await self._handle(execution_id)
            # Temporal takes a cancel of a workflow that has ended without a word.
            return await self._runs(handle) and await _found(handle.cancel(rpc_timeout=self._patience))

    async def terminate(self, execution_id: str, reason: str) -> bool:
        async with self._calling():
            handle = await self._handle(execution_id)
            return await _found(handle.terminate(reason=reason, rpc_timeout=self._patience))

    async def unended(self) -> AsyncIterator[str]:
        if not self._settings.owner:
            return
        query = f"WorkflowType = '{WORKFLOW_TYPE}' AND ExecutionStatus = 'Running'"
        async with self._calling(_LISTING):
            client = await self._connection.client(self._patience)
            found = [
                entry
                async for entry in client.list_workflows(query, rpc_timeout=self._patience)
                if await entry.memo_value(OWNER_MEMO, "") == self._settings.owner
            ]
        for entry in found:
            yield entry.id.removeprefix(f"{WORKFLOW_TYPE}/")

    async def clean_up(self, remains: SessionRemains) -> None:
        async with self._calling():
            client = await self._connection.client(self._patience)
            await client.start_workflow(
                CLEANUP_WORKFLOW_TYPE,
                remains,
                id=f"{CLEANUP_WORKFLOW_TYPE}/{remains.session_id}",
                task_queue=self._settings.workflow_task_queue,
                memo=self._memo(),
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                rpc_timeout=self._patience,
            )

    async def ask_for_files(self, task_id: str) -> None:
        async with self._calling():
            client = await self._connection.client(self._patience)
            await client.start_workflow(
                FILES_WORKFLOW_TYPE,
                task_id,
                id=f"{FILES_WORKFLOW_TYPE}/{task_id}",
                task_queue=self._settings.workflow_task_queue,
                memo=self._memo(),
                request_eager_start=True,
                rpc_timeout=self._patience,
            )

    async def running(self, execution_id: str) -> bool:
        async with self._calling():
            return await self._runs(await self._handle(execution_id))

    async def reachable(self) -> bool:
        return await self._connection.reachable()

    def _argument(
        self, execution_id: str, session_id: str, agent_id: str, execution: AgentExecution | None
    ) -> AgentExecution:
        """Ids alone, or the whole without what nobody but us may read: the callback token."""
        argument = AgentExecution()
        if execution is not None and self._settings.full_argument:
            argument.CopyFrom(execution)
            argument.spec.ClearField("callback_token")
            argument.status.ClearField("callback_token")
            if _is_too_large(argument):
                log.warning("execution is too large for a workflow's argument", execution_id=execution_id)
                argument = AgentExecution()
        if execution is not None:
            argument.metadata.name, argument.metadata.org = execution.metadata.name, execution.metadata.org
        argument.metadata.id = execution_id
        argument.spec.session_id = session_id
        argument.spec.agent_id = agent_id
        return argument

    def _memo(self) -> dict[str, str]:
        memo = {TASK_QUEUE_MEMO: self._settings.runner_task_queue}
        return memo | ({OWNER_MEMO: self._settings.owner} if self._settings.owner else {})

    async def _handle(self, execution_id: str) -> WorkflowHandle[object, object]:
        client = await self._connection.client(self._patience)
        return client.get_workflow_handle(workflow_id(execution_id))

    async def _runs(self, handle: WorkflowHandle[object, object]) -> bool:
        try:
            description = await handle.describe(rpc_timeout=self._patience)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise
        return description.status is WorkflowExecutionStatus.RUNNING

    @asynccontextmanager
    async def _calling(self, patience: timedelta | None = None) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout((patience or self._patience).total_seconds()):
                yield
        except TimeoutError as error:
            raise WorkflowServiceUnavailableError(self._connection.address) from error
        except RPCError as error:
            refusal = "" if error.status in _AWAY else error.message
            raise WorkflowServiceUnavailableError(self._connection.address, refusal) from error


def _is_too_large(argument: AgentExecution) -> bool:
    payload = DATA_CONVERTER.payload_converter.to_payload(argument)
    return payload.ByteSize() > _MOST_ARGUMENT_BYTES


async def _found(call: Awaitable[None]) -> bool:
    """False where the server says that nothing runs under the id."""
    try:
        await call
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return False
        raise
    return True
