"""Starting and stopping the workflow that runs an execution, and the names both sides know it by."""

from __future__ import annotations

from collections.abc import AsyncIterator
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


# Ours alone.
CLEANUP_WORKFLOW_TYPE = "agent-runner/session/cleanup"
FORGET_THREAD = "agent-runner/forget-thread"
FILES_WORKFLOW_TYPE = "agent-runner/session/files"
SERVE_FILES = "agent-runner/serve-files"
OWNER_MEMO = "agentRunnerOwner"
"""Memo of the workflow: which store its execution is in, since several may share a namespace."""


def workflow_id(execution_id: str) -> str:
    """Id of the workflow that runs an execution."""
    return f"{WORKFLOW_TYPE}/{execution_id}"


@dataclass(frozen=True, slots=True)
class SessionRemains:
    """What runners hold of a session that was deleted; argument of the workflow which removes it.

    Attributes:
        sandbox_id: as the session has it; empty when it never had one.
        wait_seconds: before the removal begins, for a runner that may not have stopped yet.
    """

    session_id: str
    thread_id: str
    sandbox_id: str = ""
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class InvokeOptions:
    """Second argument of our workflow; a server of the Stigmer API sends none.

    Attributes:
        waiting_caller: somebody waits for the end; their callback token is read from the store, so that
            it does not stand in the workflow's history.
        execution_timeout_seconds: the longest one attempt may take.
        heartbeat_timeout_seconds: silence after which the execution is given to another worker.
        max_attempts: how often in all a foreign runner may try it, or lose it; attempts of our own are
            counted by how they end.
        only_tell_caller: the execution has ended, and whoever waits for it has not been told.
    """

    waiting_caller: bool = False
    execution_timeout_seconds: float = 86_400.0
    heartbeat_timeout_seconds: float = 5.0
    max_attempts: int = 20
    only_tell_caller: bool = False


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
        again: bool = False,
        only_tell_caller: bool = False,
    ) -> None:
        """Start the execution's workflow; nothing happens when it runs already or has run.

        Args:
            again: start it also when it has run, to go on with an execution that has not ended.
            only_tell_caller: with `again`: the execution has ended and its caller still waits.
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

    def unended(self) -> AsyncIterator[str]:
        """Ids of the executions of this store that have a workflow which runs, as far as is known: one
        that began or ended in the last seconds may be missing, or there still.

        Raises:
            WorkflowServiceUnavailableError: nobody could be asked.
        """
        ...

    async def clean_up(self, remains: SessionRemains) -> None:
        """Have runners remove what they hold of a session; goes on until it is done.

        Raises:
            WorkflowServiceUnavailableError: nobody was asked.
        """
        ...

    async def ask_for_files(self, task_id: str) -> None:
        """Have a runner come to the control plane for a task with a session's files; returns at once.

        Nothing comes of it when no runner is free within the next seconds.

        Raises:
            WorkflowServiceUnavailableError: no runner was asked.
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
