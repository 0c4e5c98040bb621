"""Workflows that only remember that they were started, for tests of what stands above."""

from __future__ import annotations

from collections.abc import AsyncIterator

from agent_runner.errors import WorkflowServiceUnavailableError
from agent_runner.ports.workflows import SessionRemains
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution


class MemoryWorkflowStarter:
    """Passes the contract suite without a Temporal service. Nothing is ever executed.

    Attributes:
        available: set it False to have every call fail as when Temporal is away.
        started: execution ids in the order of their first start.
        waiting_callers: those started with a waiting caller.
        cancelled: those asked to stop, in order.
        told: ended ones whose callers were told later.
        cleaned: what was left of deleted sessions.
        file_tasks: tasks with files that runners were asked to come for.
    """

    def __init__(self) -> None:
        self.available = True
        self.started: list[str] = []
        self.waiting_callers: set[str] = set()
        self.cancelled: list[str] = []
        self.told: list[str] = []
        self.cleaned: list[SessionRemains] = []
        self.file_tasks: list[str] = []
        self._running: set[str] = set()

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
        self._ensure_available()
        if execution_id in self._running or (execution_id in self.started and not again):
            return
        if only_tell_caller:
            self.told.append(execution_id)
            return
        self.started.append(execution_id)
        self._running.add(execution_id)
        if waiting_caller:
            self.waiting_callers.add(execution_id)

    async def cancel(self, execution_id: str) -> bool:
        self._ensure_available()
        if execution_id not in self._running:
            return False
        self.cancelled.append(execution_id)
        return True

    async def terminate(self, execution_id: str, reason: str) -> bool:
        self._ensure_available()
        was_running = execution_id in self._running
        self._running.discard(execution_id)
        return was_running

    async def running(self, execution_id: str) -> bool:
        self._ensure_available()
        return execution_id in self._running

    async def unended(self) -> AsyncIterator[str]:
        self._ensure_available()
        for execution_id in sorted(self._running):
            yield execution_id

    async def clean_up(self, remains: SessionRemains) -> None:
        self._ensure_available()
        self.cleaned.append(remains)

    async def ask_for_files(self, task_id: str) -> None:
        self._ensure_available()
        self.file_tasks.append(task_id)

    async def reachable(self) -> bool:
        return self.available

    def finish(self, execution_id: str) -> None:
        """Let its workflow end, as if the execution had."""
        self._running.discard(execution_id)

    def _ensure_available(self) -> None:
        if not self.available:
            raise WorkflowServiceUnavailableError("memory")
