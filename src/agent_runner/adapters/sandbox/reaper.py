"""Removing sandboxes no session owns: what crashes, lost deletions and restored backups leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import timedelta

import structlog

from agent_runner.adapters.sandbox.leases import Leases
from agent_runner.errors import AgentRunnerError
from agent_runner.ports.sandboxes import SandboxProvider

log = structlog.get_logger(__name__)


class Reaper:
    """Deletes the sandboxes of sessions which are no more. Any number may run at once."""

    def __init__(
        self,
        provider: SandboxProvider,
        live_sessions: Callable[[], Awaitable[Collection[str]]],
        leases: Leases | None = None,
        *,
        interval: timedelta = timedelta(seconds=20),
    ) -> None:
        """
        Args:
            live_sessions: ids of the sessions there are. While it raises, nothing is removed.
            leases: a sandbox with a lease that has not expired is left alone.
        """
        self._provider = provider
        self._live_sessions = live_sessions
        self._leases = leases
        self._interval = interval

    async def run_once(self) -> Sequence[str]:
        """Remove what nobody owns; returns whose it was.

        Raises:
            AgentRunnerError: the sessions or the sandboxes could not be listed.
        """
        # Sandboxes first: a session made after that has its record before its sandbox.
        found = await self._provider.sessions()
        live = set(await self._live_sessions())
        held = await self._held()
        removed = []
        for session_id in found:
            if session_id in live or session_id in held:
                continue
            try:
                await self._provider.delete(session_id)
            except AgentRunnerError as error:
                log.warning("sandbox not removed", session_id=session_id, reason=str(error))
                continue
            log.info("sandbox without a session removed", session_id=session_id, kind=self._provider.kind)
            removed.append(session_id)
        await self._provider.sweep()
        return removed

    async def run(self) -> None:
        """Do so again and again until cancelled."""
        while True:
            try:
                await self.run_once()
            except AgentRunnerError as error:
                log.warning("sandboxes not looked through", reason=str(error))
            await asyncio.sleep(self._interval.total_seconds())

    async def _held(self) -> Collection[str]:
        if self._leases is None:
            return ()
        leases = await self._leases.all(self._provider.kind)
        return {lease.session_id for lease in leases if not lease.expired()}
