"""The log of each execution together with what is in memory of it; what both kinds of use share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, TypeVar

import structlog

from agent_runner.domain.ids import canonical_id, is_id
from agent_runner.domain.kinds import AGENT_EXECUTION
from agent_runner.domain.status import StatusFold
from agent_runner.errors import (
    AgentRunnerError,
    ConflictError,
    FencedError,
    NotFoundError,
    PositionError,
)
from agent_runner.ports.announcers import Announcer
from agent_runner.ports.stores import EventLog, LogHead
from agent_runner.services._clocks import Clock, rfc3339
from agent_runner.services._live import Live, LiveExecutions, with_snapshot
from agent_runner.services._stored_events import stored_events
from agent_runner.services.execution_records import ExecutionRecord, ExecutionRecords
from agent_runner.v1.events_pb2 import ExecutionEvent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus

log = structlog.get_logger(__name__)
T = TypeVar("T")

_TRIES: Final = 20
_CHANGES_PHASE: Final = frozenset({"phase_changed", "status_merged"})
_LONGEST_TIME: Final = 40
BEYOND: Final = (1 << 63) - 1
"""A seq no log gets to. It is announced when a log goes: whoever hears of it looks, and finds nothing."""


def topic_of(execution_id: str) -> str:
    """Where appends to an execution are announced; a message is the newest seq in decimal digits."""
    return f"execution/{execution_id}"


class Logbook:
    """Opens executions, and writes to their logs.

    Args:
        replicas: whether other processes write to the same stores; see `Services`.
    """

    def __init__(
        self,
        records: ExecutionRecords,
        events: EventLog,
        announcer: Announcer,
        *,
        clock: Clock,
        replicas: bool,
    ) -> None:
        self.records = records
        self.events = events
        self.announcer = announcer
        self.lives = LiveExecutions()
        self.on_end: Callable[[ExecutionRecord], None] = lambda record: None
        """Called when an execution has ended, whoever ended it."""
        self._clock = clock
        self._replicas = replicas

    @asynccontextmanager
    async def open(self, execution_id: str, *, fresh: bool = False) -> AsyncIterator[Live]:
        """An execution as it is in memory, read from the store when it is not there.

        Args:
            fresh: compare it with the log first, where other processes may have written.

        Raises:
            NotFoundError: there is none.
        """
        async with self.lives.use(checked(execution_id)) as live:
            if not live.loaded or live.stale:
                async with live.lock:
                    if not live.loaded or live.stale:
                        await self._load(live)
            elif fresh:
                await self.refresh(live)
            if live.deleted:
                raise NotFoundError(AGENT_EXECUTION.name, live.execution_id)
            yield live

    async def refresh(self, live: Live) -> None:
        """Catch up with what other processes have written."""
        if self._replicas:
            async with live.lock:
                await self._catch_up(live)

    async def catch_up_to(self, live: Live, seq: int) -> None:
        """Read the log if it is said to have `seq` and memory has not."""
        if live.seq < seq:
            async with live.lock:
                if live.seq < seq:
                    await self._catch_up(live)

    async def writing(self, live: Live, step: Callable[[LogHead], Awaitable[T]]) -> T:
        """Run a step which stores events, again after each conflict with another process.

        A step that refuses what memory knows nothing of is run again on what the log says.

        Raises:
            ConflictError: others were faster every time.
        """
        async with live.lock:
            loaded = False
            for _ in range(_TRIES):
                if live.stale or live.head is None:
                    await self._load(live)
                    loaded = True
                if live.deleted:
                    raise NotFoundError(AGENT_EXECUTION.name, live.execution_id)
                if live.head is None:
                    continue  # appended to between two reads
                try:
                    return await step(live.head)
                except ConflictError:
                    log.info("someone else has appended", execution_id=live.execution_id)
                except (FencedError, PositionError):
                    if loaded:
                        raise
                    live.stale = True
        raise ConflictError("event log", live.execution_id, live.seq)

    async def store(self, live: Live, events: Sequence[ExecutionEvent], head: LogHead) -> None:
        """Append events to the log and fold them in. The lock is held.

        Args:
            events: `seq` and missing times are set here.
            head: as it was, but with the attempt and position that follow.

        Raises:
            ConflictError: another process has appended; nothing was written.
        """
        assert live.record is not None
        rows = self._number(events, head.last_seq)
        size = sum(len(body) for _seq, _event, body in rows)
        head = replace(head, last_seq=head.last_seq + len(rows))
        record = live.record
        changes = any(event.WhichOneof("event") in _CHANGES_PHASE for event in events)
        if changes or live.snapshot_due(len(rows), size):
            fold = StatusFold(live.status())
            for _seq, event, _body in rows:
                fold.apply(event)
            if fold.phase != live.fold.phase or live.snapshot_due(len(rows), size):
                head = with_snapshot(head, fold.status)
            record = self.records.in_phase(record, fold.phase)
        await self._append(live, [body for _seq, _event, body in rows], head)
        changed, live.record = record is not live.record, record
        self._take_over(live, rows, head)
        await self._publish(live.execution_id, live.seq)
        if changed:
            await self.index(live)

    async def mend(self, live: Live) -> None:
        """Compare what lists know with the log, and put it right. The lock is held."""
        record = await self.records.get(live.execution_id)
        live.record = self.records.in_phase(record, live.phase)
        if live.record is not record:
            await self.index(live)

    async def index(self, live: Live) -> None:
        """Let lists know the phase, after the log has it. The lock is held.

        The log is the truth: when this fails, loading or reconciling mends it.
        """
        assert live.record is not None
        try:
            live.record = await self.records.put(live.record)
        except AgentRunnerError as error:
            live.stale = True
            log.warning("phase was not indexed", execution_id=live.execution_id, error=str(error))
        except BaseException:
            live.stale = True
            raise

    async def forget(self, execution_id: str) -> None:
        """Remove the log of an execution whose record is gone; other processes hear of it."""
        # First of all, so that nobody is shown what is left of it meanwhile.
        self.lives.forget(execution_id)
        await self._publish(execution_id, BEYOND)
        await self.events.delete(execution_id)

    async def _append(self, live: Live, bodies: Sequence[bytes], head: LogHead) -> None:
        expected = head.last_seq - len(bodies)
        try:
            await self.events.append(live.execution_id, bodies, expected_seq=expected, head=head)
        except BaseException:
            # What was written is not known, as when a caller leaves: the next use reads the log again.
            live.stale = True
            raise

    def _number(self, events: Sequence[ExecutionEvent], seq: int) -> list[tuple[int, ExecutionEvent, bytes]]:
        now = rfc3339(self._clock())
        rows = []
        for event in events:
            seq += 1
            event.seq = seq
            if not event.time or len(event.time) > _LONGEST_TIME:
                event.time = now
            rows.append((seq, event, event.SerializeToString()))
        return rows

    def _take_over(
        self, live: Live, rows: Sequence[tuple[int, ExecutionEvent, bytes]], head: LogHead
    ) -> None:
        if head.snapshot_seq == head.last_seq:
            live.snapshot_bytes, live.bytes_since_snapshot = len(head.snapshot), 0
        was_terminal, live.head = live.terminal, head
        live.advance(rows)
        if live.terminal and not was_terminal and live.record is not None:
            self.on_end(live.record)

    async def _publish(self, execution_id: str, seq: int) -> None:
        # Where it is lost, other replicas look by themselves after a while.
        await self.announcer.publish(topic_of(execution_id), b"%d" % seq)

    async def _load(self, live: Live) -> None:
        """Read record, snapshot and the events since, and mend the index if it lags behind."""
        record, head = await asyncio.gather(
            self.records.get(live.execution_id), self.events.head(live.execution_id)
        )
        fold = StatusFold(AgentExecutionStatus.FromString(head.snapshot))
        seq, size, last_time = head.snapshot_seq, 0, ""
        async for number, body in stored_events(self.events, live.execution_id, head.snapshot_seq):
            event = ExecutionEvent.FromString(body)
            fold.apply(event)
            seq, size, last_time = number, size + len(body), event.time
        live.fold, live.seq = fold, seq
        live.head = head if seq == head.last_seq else None
        live.snapshot_bytes, live.bytes_since_snapshot = len(head.snapshot), size
        live.cancel_requested = fold.status.run.cancel_requested
        live.last_time, live.holder = last_time, record.holder or live.holder
        mended = self.records.in_phase(record, fold.phase)
        if mended is not record:
            record = await self.records.put(mended)
        live.record, live.loaded, live.stale = record, True, False
        live.tail.clear()
        live.announce()

    async def _catch_up(self, live: Live) -> None:
        try:
            live.record = await self.records.get(live.execution_id)
        except NotFoundError:
            live.deleted = True
            live.announce()
            return
        stored = stored_events(self.events, live.execution_id, live.seq)
        rows = [(seq, ExecutionEvent.FromString(body), body) async for seq, body in stored]
        if rows:
            live.head = None  # attempt and position are someone else's now
            live.advance(rows)


def checked(execution_id: str) -> str:
    """The canonical id.

    Raises:
        NotFoundError: no execution can have this id.
    """
    key = canonical_id(execution_id)
    if not is_id(AGENT_EXECUTION.id_prefix, key):
        hint = f"Its ids begin with {AGENT_EXECUTION.id_prefix}-."
        raise NotFoundError(AGENT_EXECUTION.name, execution_id[:100], hint)
    return key
