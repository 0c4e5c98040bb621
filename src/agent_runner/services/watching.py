"""Reading executions, once or for as long as they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from typing import Final

import structlog

from agent_runner.domain.kinds import AGENT_EXECUTION
from agent_runner.errors import NotFoundError, SlowWatcherError, UnavailableError
from agent_runner.services._batches import Batch, pack
from agent_runner.services._live import Live
from agent_runner.services._logbook import BEYOND, Logbook, topic_of
from agent_runner.services.execution_records import ExecutionRecord
from agent_runner.services.turns import SessionTurns
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_PENDING, ExecutionPhase

log = structlog.get_logger(__name__)

__all__ = ["Batch", "WatchService"]

HEARTBEAT: Final = timedelta(seconds=15)
SUBSCRIBE_INTERVAL: Final = timedelta(milliseconds=100)
_READ_LIMIT: Final = 200
_READ_BYTES: Final = 1 << 20
"""What is read from the log at once for a watcher, who may be slow to take it."""
_SUBSCRIBE_RATE: Final = 10 << 20
"""Bytes a second one subscriber costs at most; a very large status is sent less often."""
_LISTEN_AGAIN: Final = timedelta(seconds=1)


class WatchService:
    """Reads executions from memory, and keeps those who watch up to date.

    Nothing waits in memory for a slow reader. Everybody reads from the same tail of the log, and who
    fell behind it from the log itself, in larger batches.
    """

    def __init__(self, logbook: Logbook, turns: SessionTurns) -> None:
        self._logbook = logbook
        self._turns = turns
        self._subscribed: dict[str, set[Live]] = {}
        """Executions somebody subscribes to, by session."""
        self._watched: set[Live] = set()
        self._closing = False

    async def execution(self, execution_id: str) -> AgentExecution:
        """An execution with its status.

        Raises:
            NotFoundError: there is none.
        """
        async with self._logbook.open(execution_id, fresh=True) as live:
            await self._place_in_queue(live)
            return live.execution()

    async def phase(self, execution_id: str) -> ExecutionPhase.ValueType:
        """The phase, as the log has it."""
        async with self._logbook.open(execution_id, fresh=True) as live:
            return live.phase

    async def mended_phase(self, listed: ExecutionRecord) -> ExecutionPhase.ValueType:
        """The phase, as the log has it; a list that said otherwise is put right."""
        async with self._logbook.open(listed.id, fresh=True) as live:
            if not listed.listed_in(live.phase):
                async with live.lock:
                    await self._logbook.mend(live)
            return live.phase

    async def status(self, execution_id: str) -> tuple[ExecutionRecord, AgentExecutionStatus, str]:
        """The record, the folded status, and when the newest event happened; empty: long ago."""
        async with self._logbook.open(execution_id, fresh=True) as live:
            assert live.record is not None
            return live.record, live.status(), live.last_time

    async def watch(
        self, execution_id: str, after_seq: int = 0, *, heartbeat: timedelta = HEARTBEAT
    ) -> AsyncGenerator[Batch, None]:
        """Batches of events after `after_seq`, from the log and then live, without gap or repetition.

        A batch without payload is a heartbeat. Ends after the event of a terminal phase.

        Raises:
            NotFoundError: no such execution, or it was deleted while it was watched.
        """
        async with self._logbook.open(execution_id, fresh=True) as live, self._listening(live):
            sent, beat = after_seq, _Beat(heartbeat)
            while True:
                changed = live.changed
                self._check(live)
                if live.seq > sent:
                    for batch in await self._after(live, sent):
                        yield batch
                        sent = batch.last
                    beat.restart()
                elif live.terminal:
                    return
                elif not await _within(changed, beat.due_in):
                    await self._logbook.refresh(live)
                    yield Batch(sent + 1, sent, b"")
                    beat.restart()

    async def subscribe(
        self, execution_id: str, *, interval: timedelta = SUBSCRIBE_INTERVAL
    ) -> AsyncGenerator[bytes, None]:
        """The serialized execution at once, then after changes, at most once in an interval.

        Of several changes the latest is shown, but no phase is left out. Ends after the state of a
        terminal phase.

        Raises:
            NotFoundError: no such execution, or it was deleted while it was watched.
        """
        async with self._logbook.open(execution_id, fresh=True) as live, self._listening(live):
            with self._subscribing(live):
                seen, sent = live.seq, b""
                while True:
                    changed = live.changed
                    self._check(live)
                    await self._place_in_queue(live)
                    # Looked for one by one: while one is taken, the next one may come.
                    while milestone := live.milestone_after(seen):
                        seen, sent = milestone
                        yield sent
                    ended, state = live.terminal, live.render()
                    if state != sent:
                        seen, sent = live.seq, state
                        yield state
                    if ended:
                        return
                    if not await _within(changed, HEARTBEAT):
                        await self._logbook.refresh(live)
                    await _within(live.ended, max(interval, timedelta(seconds=len(sent) / _SUBSCRIBE_RATE)))

    async def mark_started(self, execution_id: str) -> None:
        """Note that the execution's workflow was started: nothing comes before it any more."""
        async with self._logbook.open(execution_id) as live:
            live.started = True

    async def set_fields(self, execution_id: str, fields: Mapping[str, str]) -> None:
        """Note values lists filter by.

        Raises:
            NotFoundError: there is no such execution.
        """
        records = self._logbook.records
        await self.replace_record(await records.set_fields(await records.get(execution_id), fields))

    async def wait_end(self, execution_id: str, limit: timedelta) -> bool:
        """Wait until the execution has ended or is gone; False when the time is over first."""
        with suppress(NotFoundError):
            try:
                async with asyncio.timeout(limit.total_seconds()):
                    async with aclosing(self.watch(execution_id, BEYOND)) as batches:  # to the end alone
                        async for _ in batches:
                            pass
            except TimeoutError:
                return False
        return True

    @property
    def watchers(self) -> int:
        """How many watch or subscribe now."""
        return sum(live.watchers for live in self._watched)

    async def replace_record(self, record: ExecutionRecord) -> None:
        """Take over a resource that was changed in the store."""
        async with self._logbook.lives.use(record.id) as live:
            if live.loaded:
                live.record = record
                live.announce()

    async def forget(self, execution_id: str) -> None:
        """Remove the log of an execution that is gone; whoever watches it, anywhere, gets NotFoundError."""
        await self._logbook.forget(execution_id)

    def wake(self, session_id: str) -> None:
        """Let those who watch waiting executions of a session know that the queue has moved."""
        for live in self._subscribed.get(session_id, ()):
            if live.phase == EXECUTION_PENDING:
                live.announce()

    def close(self) -> None:
        """Send those who watch away, to watch again elsewhere or later."""
        self._closing = True
        for live in self._watched:
            live.announce()

    def _check(self, live: Live) -> None:
        if live.deleted:
            raise NotFoundError(AGENT_EXECUTION.name, live.execution_id)
        if self._closing:
            raise UnavailableError("The server is stopping. Watch again, from the last seq on.")

    async def _place_in_queue(self, live: Live) -> None:
        assert live.record is not None
        waits = live.phase == EXECUTION_PENDING and not live.started
        live.queue_position = await self._turns.position(live.record) if waits else 0

    async def _after(self, live: Live, seq: int) -> Sequence[Batch]:
        """What follows `seq`, from memory when all of it is there, else from the log."""
        if (tail := live.tail.after(seq)) is not None:
            return [tail]
        rows = await self._logbook.events.read(
            live.execution_id, after_seq=seq, limit=_READ_LIMIT, most_bytes=_READ_BYTES
        )
        if not rows:  # a log keeps its newest event, so this one is gone, and maybe by another process
            live.stale = True
            raise NotFoundError(AGENT_EXECUTION.name, live.execution_id)
        return pack(rows)

    @contextmanager
    def _subscribing(self, live: Live) -> Iterator[None]:
        assert live.record is not None
        session_id = live.record.session_id
        live.subscribers += 1
        self._subscribed.setdefault(session_id, set()).add(live)
        try:
            yield
        finally:
            live.subscribers -= 1
            if not live.subscribers:
                live.milestones.clear()
                self._subscribed[session_id].discard(live)
                if not self._subscribed[session_id]:
                    del self._subscribed[session_id]

    @asynccontextmanager
    async def _listening(self, live: Live) -> AsyncIterator[None]:
        """Hear of appends by other processes for as long as anybody watches."""
        live.watchers += 1
        self._watched.add(live)
        if live.listener is None:
            live.listener = asyncio.create_task(self._listen(live), name=f"listen {live.execution_id}")
        try:
            yield
        finally:
            live.watchers -= 1
            if not live.watchers and live.listener is not None:
                live.listener.cancel()
                live.listener = None
                self._watched.discard(live)

    async def _listen(self, live: Live) -> None:
        while True:
            try:
                async with self._logbook.announcer.subscribe(topic_of(live.execution_id)) as messages:
                    # What was appended before the subscription was there.
                    await self._logbook.refresh(live)
                    async for message in messages:
                        await self._logbook.catch_up_to(live, int(message))
            except SlowWatcherError:
                continue
            except UnavailableError as error:
                # Said once by who lost the connection, rather than for each execution that is watched.
                log.debug("not listening", execution_id=live.execution_id, error=str(error))
                await asyncio.sleep(_LISTEN_AGAIN.total_seconds())


class _Beat:
    """When the next heartbeat is due: so long after what was sent last."""

    def __init__(self, every: timedelta) -> None:
        self._every = every.total_seconds()
        self.restart()

    def restart(self) -> None:
        self._due = asyncio.get_running_loop().time() + self._every

    @property
    def due_in(self) -> timedelta:
        return timedelta(seconds=self._due - asyncio.get_running_loop().time())


async def _within(event: asyncio.Event, limit: timedelta) -> bool:
    """Wait for an event; False when the time is over first."""
    try:
        async with asyncio.timeout(limit.total_seconds()):
            await event.wait()
    except TimeoutError:
        return False
    return True
