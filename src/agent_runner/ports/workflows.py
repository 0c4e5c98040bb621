"""Starting and stopping the workflow that runs an execution."""

from __future__ import annotations

from typing import Protocol


class WorkflowStarter(Protocol):
    """Temporal, as the services see it. Every adapter passes `tests/contract/test_workflow_starter.py`.

    The workflow id follows from the execution id, so starting is safe to repeat.
    """

    async def start(self, execution_id: str, session_id: str, agent_id: str, *, waiting_caller: bool) -> None:
        """Start the execution's workflow; nothing happens when it runs already.

        Args:
            waiting_caller: whether the execution has a callback token.

        Raises:
            WorkflowServiceUnavailableError: nothing was started.
        """
        ...

    async def cancel(self, execution_id: str) -> bool:
        """Ask the workflow to stop; False when there is none that runs.

        Raises:
            WorkflowServiceUnavailableError: nobody was asked.
        """
        ...

    async def terminate(self, execution_id: str, reason: str) -> bool:
        """Stop the workflow without asking; False when there is none that runs."""
        ...

    async def running(self, execution_id: str) -> bool:
        """Whether a workflow runs for the execution."""
        ...

    async def reachable(self) -> bool:
        """Whether the service answers now; never raises."""
        ...
