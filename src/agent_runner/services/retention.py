"""What is not kept for ever: pieces of text in ended logs, and sessions nobody uses any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from agent_runner.domain.compaction import compact
from agent_runner.domain.kinds import AGENT_EXECUTION, SESSION
from agent_runner.domain.paging import MOST
from agent_runner.domain.phases import phase_name
from agent_runner.errors import ConflictError, NotFoundError, UnavailableError
from agent_runner.ports.stores import EventLog, ResourceStore, StoredResource
from agent_runner.services._clocks import Clock
from agent_runner.services._stored_events import stored_events
from agent_runner.services.execution_records import GOING, LOG, ExecutionRecord
from agent_runner.services.executions import ExecutionService
from agent_runner.services.metrics import Counters
from agent_runner.services.sessions import SessionService
from agent_runner.services.watching import WatchService
from agent_runner.v1.events_pb2 import ExecutionEvent
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_IN_PROGRESS, EXECUTION_PENDING
from ai.stigmer.agentic.session.v1.api_pb2 import Session
from ai.stigmer.commons.apiresource.status_pb2 import ApiResourceAudit

log = structlog.get_logger(__name__)

_MOST_EVENTS: Final = 500_000
_MOST_BYTES: Final = 128 << 20
"""Logs with more are left as they are: to compact one it is read into memory."""
_UNFINISHED: Final = (phase_name(EXECUTION_PENDING), phase_name(EXECUTION_IN_PROGRESS))


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """What is kept for how long.

    Attributes:
        compact_after: the end of an execution was so long ago: its log is compacted; None: never.
        sessions_for: nothing has happened in a session for so long: it is removed; None: never.
    """

    compact_after: timedelta | None = timedelta(hours=1)
    sessions_for: timedelta | None = None


@dataclass(slots=True)
class Swept:
    """What a sweep has done."""

    compacted: int = 0
    removed: int = 0


class Retention:
    """Compacts and removes by age."""

    def __init__(
        self,
        store: ResourceStore,
        events: EventLog,
        *,
        sessions: SessionService,
        executions: ExecutionService,
        watches: WatchService,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._store = store
        self._events = events
        self._sessions = sessions
        self._executions = executions
        self._watches = watches
        self._clock = clock
        self._counters = counters

    async def sweep(self, policy: RetentionPolicy) -> Swept:
        """Look at everything that may be old enough.

        Raises:
            UnavailableError: the store is away.
        """
        done = Swept()
        async for row in self._all(AGENT_EXECUTION.name, {GOING: "yes"}):
            await self._finish_removal(row.key.id)
        if policy.sessions_for is not None:
            async for row in self._all(SESSION.name, {}):
                done.removed += await self._remove_session(row, self._clock() - policy.sessions_for)
        if policy.compact_after is not None:
            async for row in self._all(AGENT_EXECUTION.name, {LOG: "full"}):
                if (
                    _changed(ExecutionRecord(row).message().status.audit)
                    < self._clock() - policy.compact_after
                ):
                    done.compacted += await self.compact_log(row.key.id)
        self._counters.add("sessions_removed", done.removed)
        self._counters.add("logs_compacted", done.compacted)
        if done.removed or done.compacted:
            log.info("swept", removed=done.removed, compacted=done.compacted)
        return done

    async def _finish_removal(self, execution_id: str) -> None:
        """Remove what is left of an execution whose removal broke off."""
        with suppress(NotFoundError):  # somebody else does the same
            await self._executions.delete(execution_id)
            log.info("removal of an execution finished", execution_id=execution_id)

    async def compact_log(self, execution_id: str) -> bool:
        """Compact the log of an execution that has ended; whether that left something out."""
        events = await self._all_of(execution_id)
        # Beside the event loop, which a long log would hold for seconds.
        left = await asyncio.to_thread(_compacted, events)
        shorter = len(left) < len(events)
        try:
            if shorter:
                await self._events.replace(execution_id, left)
            await self._watches.set_fields(execution_id, {LOG: "compact"})
        except (ConflictError, NotFoundError) as error:
            log.info("log not compacted", execution_id=execution_id, reason=str(error))
            return False
        return shorter

    async def _all_of(self, execution_id: str) -> Sequence[tuple[int, bytes]]:
        """The whole log; nothing of one that is too large to be taken into memory."""
        events: list[tuple[int, bytes]] = []
        size = 0
        async with aclosing(stored_events(self._events, execution_id)) as stored:
            async for seq, body in stored:
                events.append((seq, body))
                size += len(body)
                if len(events) > _MOST_EVENTS or size > _MOST_BYTES:
                    return []
        return events

    async def _remove_session(self, row: StoredResource, before: datetime) -> bool:
        """Remove a session in which nothing has happened since."""
        if await self._is_used(Session.FromString(row.body), before):
            return False
        try:
            await self._sessions.delete(row.key.id)
        except (NotFoundError, UnavailableError) as error:
            log.warning("session not removed", session_id=row.key.id, reason=str(error))
            return False
        return True

    async def _is_used(self, session: Session, since: datetime) -> bool:
        """Whether something has happened in a session, or an execution of it has not ended."""
        if _changed(session.status.audit) >= since:
            return True
        fields = {"session_id": session.metadata.id}
        # The newest one mostly tells; but ids may be chosen by callers, and an older one still run.
        for row in await self._store.list(AGENT_EXECUTION.name, fields=fields, limit=1):
            if _is_new(row, since):
                return True
        async for row in self._all(AGENT_EXECUTION.name, fields):
            if _is_new(row, since):
                return True
        return False

    async def _all(self, kind: str, fields: Mapping[str, str]) -> AsyncIterator[StoredResource]:
        after: str | None = None
        while True:
            rows = await self._store.list(kind, fields=fields, oldest_first=True, after=after, limit=MOST)
            for row in rows:
                yield row
            if len(rows) < MOST:
                return
            after = rows[-1].key.id


def _compacted(events: Sequence[tuple[int, bytes]]) -> Sequence[tuple[int, bytes]]:
    return [(event.seq, event.SerializeToString()) for event in compact(map(_parsed, events))]


def _parsed(stored: tuple[int, bytes]) -> ExecutionEvent:
    event = ExecutionEvent.FromString(stored[1])
    event.seq = stored[0]
    return event


def _is_new(row: StoredResource, since: datetime) -> bool:
    record = ExecutionRecord(row)
    return record.phase in _UNFINISHED or _changed(record.message().status.audit) >= since


def _changed(audit: ApiResourceAudit) -> datetime:
    return max(info.updated_at.ToDatetime(UTC) for info in (audit.spec_audit, audit.status_audit))
