"""Running an agent."""

from __future__ import annotations

from temporalio import activity

from agent_runner.runner.attempts import Attempt, Parts
from agent_runner.runner.heartbeats import heartbeats
from agent_runner.runner.payloads import EXECUTE_GRAPHTON
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus


class ExecutionActivities:
    """Holds what stays on the worker: clients, models, sandboxes."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    @activity.defn(name=EXECUTE_GRAPHTON)
    async def execute(self, execution: AgentExecution, thread_id: str) -> AgentExecutionStatus:
        """Run the execution's turn; a later attempt goes on where an earlier one stopped.

        Args:
            execution: ids; from a foreign server also message and configuration.

        Raises:
            ApplicationError: see `Attempt.run`.
        """
        async with heartbeats():
            return await Attempt(self._parts, execution, thread_id).run()
