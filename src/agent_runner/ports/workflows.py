"""Starting and stopping the workflow that runs an execution, and the names both sides know it by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution

# Names of the Stigmer API; they must not change.
WORKFLOW_TYPE = "stigmer/agent-execution/invoke"
WORKFLOW_TASK_QUEUE = "agent_execution_stigmer"
RUNNER_TASK_QUEUE = "agent_execution_runner"
TASK_QUEUE_MEMO = "activityTaskQueue"
"""Memo of the workflow: the task queue of the runner's activities."""
ENSURE_THREAD = "EnsureThread"
EXECUTE_GRAPHTON = "ExecuteGraphton"
CLEANUP_SANDBOX = "CleanupSandbox"
UPDATE_EXECUTION_STATUS = "UpdateExecutionStatus"
COMPLETE_EXTERNAL_ACTIVITY = "stigmer/system/complete-external-activity"


def workflow_id(execution_id: str) -> str:
    """Id of the workflow that runs an execution."""
    return f"{WORKFLOW_TYPE}/{execution_id}"


@dataclass(frozen=True, slots=True)
class InvokeOptions:
    """Second argument of our workflow; a server of the Stigmer API sends none.

    Attributes:
        waiting_caller: somebody waits for the end; their callback token is read from the store, so that
            it does not stand in the workflow's history.
        execution_timeout_seconds: the longest one attempt may take.
        heartbeat_timeout_seconds: silence after which the execution is given to another worker.
        max_attempts: how often in all it is tried.
    """

    waiting_caller: bool = False
    execution_timeout_seconds: float = 86_400.0
    heartbeat_timeout_seconds: float = 5.0
    max_attempts: int = 20


class WorkflowStarter(Protocol):
    """Temporal, as the services see it. Every adapter passes `tests/contract/test_workflow_starter.py`.

    The workflow id follows from the execution id, so starting is safe to repeat.
    """

    async def start(
        self,
        execution_id: str,
        session_id: str,
        agent_id: str,
        *,
        waiting_caller: bool,
        execution: AgentExecution | None = None,
    ) -> None:
        """Start the execution's workflow; nothing happens when it runs already or has run.

        Args:
            waiting_caller: whether the execution has a callback token.
            execution: the execution itself; gives its name and organization, and the whole argument
                where a foreign runner needs it.

        Raises:
            WorkflowServiceUnavailableError: nobody knows of a start; the same call may be made again.
        """
        ...

    async def cancel(self, execution_id: str) -> bool:
        """Ask the workflow to stop; False when there is none that runs.

        Raises:
            WorkflowServiceUnavailableError: nobody was asked.
        """
        ...

    async def terminate(self, execution_id: str, reason: str) -> bool:
        """Stop the workflow without asking; False when there is none that runs.

        Raises:
            WorkflowServiceUnavailableError: it was not stopped.
        """
        ...

    async def running(self, execution_id: str) -> bool:
        """Whether a workflow runs for the execution.

        Raises:
            WorkflowServiceUnavailableError: nobody could be asked.
        """
        ...

    async def reachable(self) -> bool:
        """Whether the service answers now; never raises."""
        ...
