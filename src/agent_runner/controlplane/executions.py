"""Executions: the Stigmer API's services, and `agent_runner.v1.ExecutionService`."""

from __future__ import annotations

from contextlib import aclosing

from agent_runner.controlplane._rpc import Deliver
from agent_runner.domain.kinds import AGENT_EXECUTION
from agent_runner.domain.paging import PageRequest, page_by_token, total_pages
from agent_runner.services.executions import ExecutionService
from agent_runner.services.validation import validate
from agent_runner.services.watching import WatchService
from agent_runner.v1.execution_service_pb2 import (
    CancelExecutionRequest,
    CancelExecutionResponse,
    PauseExecutionRequest,
    PauseExecutionResponse,
    ResumeExecutionRequest,
    ResumeExecutionResponse,
    TerminateExecutionRequest,
    TerminateExecutionResponse,
    WatchExecutionRequest,
)
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_PHASE_UNSPECIFIED
from ai.stigmer.agentic.agentexecution.v1.io_pb2 import (
    AgentExecutionId,
    AgentExecutionList,
    ListAgentExecutionsBySessionRequest,
    ListAgentExecutionsRequest,
)


class ExecutionController:
    """What executions have beyond other resources."""

    def __init__(self, executions: ExecutionService, watches: WatchService) -> None:
        self._executions = executions
        self._watches = watches

    async def list(self, request: ListAgentExecutionsRequest) -> AgentExecutionList:
        validate(request)
        wanted = _page(request.page_size, request.page_token)
        page = await self._executions.list_executions(wanted, phase=request.phase, tags=request.tags)
        count = await self._executions.count_executions(phase=request.phase)
        return AgentExecutionList(
            total_pages=total_pages(count, wanted.size), entries=page.items, next_page_token=page.next_token
        )

    async def list_by_session(self, request: ListAgentExecutionsBySessionRequest) -> AgentExecutionList:
        validate(request)
        wanted = _page(request.page_size, request.page_token)
        page = await self._executions.list_executions(
            wanted, session_id=request.session_id, phase=EXECUTION_PHASE_UNSPECIFIED
        )
        count = await self._executions.count_executions(session_id=request.session_id)
        return AgentExecutionList(
            total_pages=total_pages(count, wanted.size), entries=page.items, next_page_token=page.next_token
        )

    async def subscribe(self, request: AgentExecutionId, deliver: Deliver) -> None:
        validate(request)
        async with aclosing(self._watches.subscribe(request.value)) as states:
            async for state in states:
                await deliver(state, 0)

    async def watch(self, request: WatchExecutionRequest, deliver: Deliver) -> None:
        validate(request)
        sent = request.after_seq
        async with aclosing(self._watches.watch(request.execution_id, sent)) as batches:
            async for batch in batches:
                await deliver(batch.payload, sent)
                sent = batch.last

    async def cancel(self, request: CancelExecutionRequest) -> CancelExecutionResponse:
        validate(request)
        execution = await self._executions.cancel(request.execution_id, request.reason)
        return CancelExecutionResponse(execution=execution)

    async def terminate(self, request: TerminateExecutionRequest) -> TerminateExecutionResponse:
        validate(request)
        execution = await self._executions.terminate(request.execution_id, request.reason)
        return TerminateExecutionResponse(execution=execution)

    async def pause(self, request: PauseExecutionRequest) -> PauseExecutionResponse:
        validate(request)
        execution = await self._executions.pause(request.execution_id, request.reason)
        return PauseExecutionResponse(execution=execution)

    async def resume(self, request: ResumeExecutionRequest) -> ResumeExecutionResponse:
        validate(request)
        execution = await self._executions.resume(request.execution_id)
        return ResumeExecutionResponse(execution=execution)


def _page(size: int, token: str) -> PageRequest:
    return page_by_token(size, token, AGENT_EXECUTION.id_prefix)
