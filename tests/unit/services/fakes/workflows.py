"""A workflow service in memory: what was started, what was asked to stop."""

from __future__ import annotations

from agent_runner.errors import WorkflowServiceUnavailableError
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution


class MemoryWorkflows:
    """Knows which workflows run. `away` makes every call fail as when Temporal cannot be reached."""

    def __init__(self) -> None:
        self.away = False
        self.started: list[str] = []
        self.open: set[str] = set()
        self.cancelled: list[str] = []
        self.terminated: list[str] = []

    async def start(
        self,
        execution_id: str,
        session_id: str,
        agent_id: str,
        *,
        waiting_caller: bool,
        execution: AgentExecution | None = None,
    ) -> None:
        self._check()
        if execution_id not in self.started:
            self.started.append(execution_id)
            self.open.add(execution_id)

    async def cancel(self, execution_id: str) -> bool:
        self._check()
        self.cancelled.append(execution_id)
        return execution_id in self.open

    async def terminate(self, execution_id: str, reason: str) -> bool:
        self._check()
        self.terminated.append(execution_id)
        was_open = execution_id in self.open
        self.open.discard(execution_id)
        return was_open

    async def running(self, execution_id: str) -> bool:
        self._check()
        return execution_id in self.open

    async def reachable(self) -> bool:
        return not self.away

    def _check(self) -> None:
        if self.away:
            raise WorkflowServiceUnavailableError("127.0.0.1:7233")
