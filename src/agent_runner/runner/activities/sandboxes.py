"""Removing sandboxes."""

from __future__ import annotations

from temporalio import activity

from agent_runner.ports.sandboxes import SandboxProvider
from agent_runner.runner.failures import retry_contract
from agent_runner.runner.heartbeats import heartbeats
from agent_runner.runner.payloads import CLEANUP_SANDBOX


class SandboxActivities:
    """Holds the provider of this worker's sandboxes."""

    def __init__(self, sandboxes: SandboxProvider) -> None:
        self._sandboxes = sandboxes

    @activity.defn(name=CLEANUP_SANDBOX)
    async def cleanup(self, sandbox_id: str) -> None:
        """Remove a sandbox and its files; nothing happens when there is none.

        Args:
            sandbox_id: the sandbox's id (`kind:session`), or its session's.
        """
        async with heartbeats():
            with retry_contract():
                await self._sandboxes.delete(sandbox_id.rpartition(":")[2])
