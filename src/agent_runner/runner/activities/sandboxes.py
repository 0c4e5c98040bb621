"""Removing sandboxes."""

from __future__ import annotations

import structlog
from temporalio import activity

from agent_runner.ports.sandboxes import SandboxProvider
from agent_runner.runner.failures import retry_contract
from agent_runner.runner.heartbeats import heartbeats
from agent_runner.runner.payloads import CLEANUP_SANDBOX

log = structlog.get_logger(__name__)


class SandboxActivities:
    """Holds the provider of this worker's sandboxes."""

    def __init__(self, sandboxes: SandboxProvider) -> None:
        self._sandboxes = sandboxes

    @activity.defn(name=CLEANUP_SANDBOX)
    async def cleanup(self, sandbox_id: str) -> None:
        """Remove a sandbox and its files; nothing happens when there is none.

        Args:
            sandbox_id: as in `session.spec.sandbox_id`, or the session's own id.
        """
        async with heartbeats():
            with retry_contract():
                for session_id in await self._sandboxes.sessions():
                    if sandbox_id in (session_id, f"{self._sandboxes.kind}-{session_id}"):
                        await self._sandboxes.delete(session_id)
                        return
        log.info("no such sandbox here", sandbox_id=sandbox_id)
