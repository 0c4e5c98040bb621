"""A workflow service in memory: what was started, what was asked to stop."""

from __future__ import annotations

from collections.abc import AsyncIterator

from agent_runner.errors import WorkflowServiceUnavailableError
from agent_runner.ports.workflows import SessionRemains
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution


class MemoryWorkflows:
    """Knows which workflows run. `away` makes every call fail as when Temporal cannot be reached."""

    def __init__(self) -> None:
        self.away = False
        self.started: list[str] = []
        self.open: set[str] = set()
        self.cancelled: list[str] = []
        self.terminated: list[str] = []
        self.told: list[str] = []
        self.cleaned: list[SessionRemains] = []

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
        self._check()
        if only_tell_caller:
            self.told.append(execution_id)
        elif execution_id not in self.open and (again or execution_id not in self.started):
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

    async def unended(self) -> AsyncIterator[str]:
        self._check()
        for execution_id in sorted(self.open):
            yield execution_id

    async def clean_up(self, remains: SessionRemains) -> None:
        self._check()
        self.cleaned.append(remains)

    async def ask_for_files(self, task_id: str) -> None:
        self._check()

    async def reachable(self) -> bool:
        return not self.away

    def _check(self) -> None:
        if self.away:
            raise WorkflowServiceUnavailableError("127.0.0.1:7233")
