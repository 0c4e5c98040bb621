"""What goes in and out of the workflow and its activities; all the workflow needs to import of us."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agent_runner.ports.workflows import (
    CLEANUP_SANDBOX,
    CLEANUP_WORKFLOW_TYPE,
    COMPLETE_EXTERNAL_ACTIVITY,
    ENSURE_THREAD,
    EXECUTE_GRAPHTON,
    FILES_WORKFLOW_TYPE,
    FORGET_THREAD,
    RUNNER_TASK_QUEUE,
    SERVE_FILES,
    TASK_QUEUE_MEMO,
    UPDATE_EXECUTION_STATUS,
    WORKFLOW_TASK_QUEUE,
    WORKFLOW_TYPE,
    InvokeOptions,
    SessionRemains,
    workflow_id,
)

__all__ = [
    "CLEANUP_SANDBOX",
    "CLEANUP_WORKFLOW_TYPE",
    "COMPLETE_EXTERNAL_ACTIVITY",
    "ENSURE_THREAD",
    "EXECUTE_GRAPHTON",
    "EXECUTION_CANCELLED",
    "EXECUTION_FAILED",
    "EXECUTION_PAUSED",
    "FILES_WORKFLOW_TYPE",
    "FORGET_THREAD",
    "RUNNER_TASK_QUEUE",
    "SERVE_FILES",
    "TASK_QUEUE_MEMO",
    "UPDATE_EXECUTION_STATUS",
    "WORKFLOW_TASK_QUEUE",
    "WORKFLOW_TYPE",
    "ExternalCompletion",
    "InvokeOptions",
    "SessionRemains",
    "workflow_id",
]

EXECUTION_FAILED = "ExecutionFailed"
"""Type of the error by which an execution fails in Temporal once FAILED is stored."""
EXECUTION_CANCELLED = "ExecutionCancelled"
"""The same for CANCELLED, where it was not Temporal that was asked."""
EXECUTION_PAUSED = "ExecutionPaused"
"""Type of the error by which the runner gives up an execution that is paused: the workflow just ends."""


@dataclass(frozen=True, slots=True)
class ExternalCompletion:
    """Argument of `stigmer/system/complete-external-activity`; spelled as its JSON object is.

    Attributes:
        ExecutionId: ours: whose caller waits. Token and result are read from the store.
        CallbackToken: from a workflow of the Stigmer API: the token in base64.
        Result: with it: what the caller gets.
        Error: with it: why the caller gets nothing; set means failed.
    """

    ExecutionId: str = ""
    CallbackToken: str = ""
    Result: Any = None
    Error: Any = None
