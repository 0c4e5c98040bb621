"""Removing a session with everything that is its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Final

import structlog

from agent_runner.domain.kinds import AGENT_EXECUTION
from agent_runner.domain.paging import MOST
from agent_runner.domain.phases import UNFINISHED_PHASES, phase_name
from agent_runner.errors import FailedPreconditionError, NotFoundError
from agent_runner.ports.stores import ResourceStore
from agent_runner.ports.workflows import SessionRemains, WorkflowStarter
from agent_runner.services.execution_records import ExecutionRecord
from agent_runner.services.executions import ExecutionService
from agent_runner.services.turns import SessionTurns
from agent_runner.services.watching import WatchService
from ai.stigmer.agentic.session.v1.api_pb2 import Session

log = structlog.get_logger(__name__)

_ORDERLY: Final = timedelta(seconds=5)
"""For a running execution to be cancelled; then it is terminated."""
_UNWIND: Final = timedelta(seconds=10)
"""For the runner of a terminated one to notice, before its sandbox goes."""
_REASON: Final = "The session was deleted."


class SessionRemoval:
    """Removes what a session has: in the store, and with the runners."""

    def __init__(
        self,
        store: ResourceStore,
        *,
        executions: ExecutionService,
        turns: SessionTurns,
        watches: WatchService,
        workflows: WorkflowStarter,
    ) -> None:
        self._store = store
        self._executions = executions
        self._turns = turns
        self._watches = watches
        self._workflows = workflows

    async def remove_contents(self, session: Session) -> None:
        """Stop what runs, have sandbox and thread removed, then forget executions, logs and variables.

        The session itself goes last and by somebody else, so that what broke off can be repeated.

        Raises:
            WorkflowServiceUnavailableError: nothing was removed.
        """
        session_id = session.metadata.id
        orderly = await self._stop(session_id)
        await self._workflows.clean_up(
            SessionRemains(
                session_id=session_id,
                thread_id=session.spec.thread_id,
                sandbox_id=session.spec.sandbox_id,
                wait_seconds=0 if orderly else _UNWIND.total_seconds(),
            )
        )
        count = await self._forget_executions(session_id)
        log.info("session removed", session_id=session_id, executions=count)

    async def remove_late(self, session_id: str) -> None:
        """Remove what was begun in a session while it was removed; the session itself is gone by now.

        Who begins one looks for the session after it has stored it, so that nobody overlooks the other.
        """
        if count := await self._forget_executions(session_id):
            log.info("executions of a removed session removed", session_id=session_id, executions=count)
        await self._turns.forget(session_id)

    async def _forget_executions(self, session_id: str) -> int:
        count = 0
        async for record in self._all(session_id):
            try:
                await self._executions.delete(record.id)
                count += 1
            except NotFoundError:
                continue  # somebody else does the same
        return count

    async def _stop(self, session_id: str) -> bool:
        """Cancel all, the newest first so that none gets the turn; whether all stopped when asked."""
        unfinished = [execution_id async for execution_id in self._unfinished(session_id)]
        for execution_id in sorted(unfinished, reverse=True):
            try:
                await self._executions.cancel(execution_id, _REASON)
            except (FailedPreconditionError, NotFoundError):
                continue  # ended meanwhile
        orderly = True
        for execution_id in unfinished:
            if not await self._watches.wait_end(execution_id, _ORDERLY):
                orderly = False
                await self._terminate(execution_id)
        return orderly

    async def _terminate(self, execution_id: str) -> None:
        try:
            await self._executions.terminate(execution_id, _REASON)
        except (FailedPreconditionError, NotFoundError):
            log.debug("ended meanwhile", execution_id=execution_id)

    async def _unfinished(self, session_id: str) -> AsyncIterator[str]:
        for phase in UNFINISHED_PHASES:
            fields, before = {"session_id": session_id, "phase": phase_name(phase)}, None
            while True:
                rows = await self._store.list(AGENT_EXECUTION.name, fields=fields, before=before, limit=MOST)
                for row in rows:
                    yield row.key.id
                if len(rows) < MOST:
                    break
                before = rows[-1].key.id

    async def _all(self, session_id: str) -> AsyncIterator[ExecutionRecord]:
        while True:
            rows = await self._store.list(AGENT_EXECUTION.name, fields={"session_id": session_id}, limit=MOST)
            for row in rows:
                yield ExecutionRecord(row)
            if len(rows) < MOST:
                return
