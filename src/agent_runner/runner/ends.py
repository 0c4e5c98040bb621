"""The control plane's services, as its own worker's activities need them."""

from __future__ import annotations

from agent_runner.services.container import Services
from agent_runner.v1.events_pb2 import ExecutionEvent, PhaseChanged
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.command_pb2 import AgentExecutionUpdateStatusInput


class ServiceEnds:
    """The `ExecutionEnds` of a control plane in the same process."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def read(self, execution_id: str) -> AgentExecution:
        return await self._services.watches.execution(execution_id)

    async def end(self, execution_id: str, status: AgentExecutionStatus) -> None:
        if status.messages or status.tool_calls:
            # From a foreign runner, whose last update may not have come through.
            update = AgentExecutionUpdateStatusInput(execution_id=execution_id, status=status)
            await self._services.executions.update_status(update)
            return
        masker = await self._services.variables.masker(execution_id)
        change = PhaseChanged(phase=status.phase, error=masker.text(status.error))
        await self._services.events.record(execution_id, ExecutionEvent(phase_changed=change))

    async def told(self, execution_id: str) -> None:
        await self._services.runs.told(execution_id)
