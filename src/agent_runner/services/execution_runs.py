"""Running executions in turn: starting the next one, stopping one, mending what a crash left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from agent_runner.domain.kinds import AGENT_EXECUTION
from agent_runner.domain.paging import MOST
from agent_runner.domain.phases import UNFINISHED_PHASES, is_terminal, phase_name
from agent_runner.errors import AgentRunnerError, NotFoundError, UnavailableError
from agent_runner.ports.stores import ResourceStore
from agent_runner.ports.workflows import WorkflowStarter
from agent_runner.services._clocks import Clock
from agent_runner.services._locks import KeyedLocks
from agent_runner.services.events import EventService
from agent_runner.services.execution_records import ExecutionRecord
from agent_runner.services.secret_fields import shown
from agent_runner.services.turns import SessionTurns
from agent_runner.services.watching import WatchService
from agent_runner.v1.events_pb2 import ExecutionEvent, PhaseChanged
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_FAILED,
    EXECUTION_PENDING,
    ExecutionPhase,
)

log = structlog.get_logger(__name__)

_SILENCE: Final = timedelta(seconds=60)
"""How long an execution may be without workflow and news before it is taken for lost."""
_MOST_STARTS: Final = 5
"""How often the reconciler starts a workflow that ends without anything happening."""


@dataclass(slots=True)
class Reconciled:
    """What a look at all unfinished executions has found and mended."""

    unfinished: int = 0
    started: int = 0
    failed: int = 0
    cancelled: int = 0


class ExecutionRuns:
    """Decides which execution of a session runs, and keeps Temporal and the store in step."""

    def __init__(
        self,
        store: ResourceStore,
        *,
        turns: SessionTurns,
        events: EventService,
        watches: WatchService,
        workflows: WorkflowStarter,
        clock: Clock,
    ) -> None:
        self._store = store
        self._turns = turns
        self._events = events
        self._watches = watches
        self._workflows = workflows
        self._clock = clock
        self._locks = KeyedLocks()
        self._tasks: set[asyncio.Task[None]] = set()
        self._starts: dict[str, int] = {}

    def lock(self, session_id: str) -> AbstractAsyncContextManager[None]:
        """Held while it is settled who comes next in a session."""
        return self._locks.hold(session_id)

    async def reconcile(self) -> Reconciled:
        """Look at all unfinished executions and mend what a crash or an outage has left.

        Those whose turn it is and which have no workflow are started; those which had one that is gone
        without a word are ended as FAILED; waiting ones move up.
        """
        done = Reconciled()
        sessions: dict[str, list[str]] = {}
        for phase in UNFINISHED_PHASES:
            async for record in self._all(phase):
                if await self._is_unfinished(record):
                    done.unfinished += 1
                    sessions.setdefault(record.session_id, []).append(record.id)
        self._starts = {i: n for i, n in self._starts.items() if any(i in ids for ids in sessions.values())}
        for session_id in sessions:
            try:
                async with self.lock(session_id):
                    await self._reconcile_session(session_id, done)
            except UnavailableError as error:
                log.warning("reconciling stopped", error=str(error))
                break
        if done.started or done.failed or done.cancelled:
            log.info("reconciled", started=done.started, failed=done.failed, cancelled=done.cancelled)
        return done

    def ended(self, record: ExecutionRecord) -> None:
        """Start what waits for the turn of an execution that has ended."""
        self.hand_on(record.session_id)

    async def aclose(self) -> None:
        """Let what is being started come to its end."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        for task in self._tasks:
            task.cancel()

    # Running in turn; the session's lock is held

    async def take_turns(self, session_id: str, new: AgentExecution | None = None) -> int:
        """Start the session's next execution if none runs; answers how many were started.

        Raises:
            UnavailableError: the new one could not be started. That others could not is logged.
        """
        for record in await self._turns.waiting(session_id, limit=10):
            if await self._watches.phase(record.id) != EXECUTION_PENDING:
                continue  # the index lagged behind; looking has mended it
            if not await self._turns.claim(session_id, record.id, self.has_ended):
                return 0
            return await self._start_next(record, new)
        return 0

    async def _start_next(self, record: ExecutionRecord, new: AgentExecution | None) -> int:
        try:
            await self.start(record.message())
        except UnavailableError as error:
            if new is not None and new.metadata.id == record.id:
                raise
            log.warning("execution waits for Temporal", execution_id=record.id, error=str(error))
            return 0
        return 1

    async def start(self, execution: AgentExecution) -> None:
        """Start the workflow of an execution that has the turn.

        Raises:
            WorkflowServiceUnavailableError: nothing was started.
        """
        execution_id, spec = execution.metadata.id, execution.spec
        await self._workflows.start(
            execution_id,
            spec.session_id,
            spec.agent_id,
            waiting_caller=bool(spec.callback_token),
            # What is an argument of a workflow can be read by whoever can see the workflow.
            execution=shown(execution),
        )
        await self._watches.mark_started(execution_id)
        self._watches.wake(spec.session_id)
        log.debug("execution started", execution_id=execution_id, session_id=spec.session_id)

    async def has_ended(self, execution_id: str) -> bool:
        """Whether an execution needs no turn any more."""
        try:
            return is_terminal(await self._watches.phase(execution_id))
        except NotFoundError:
            return True

    def hand_on(self, session_id: str) -> None:
        """Start what waits in a session, in the background."""
        task = asyncio.create_task(self._next_turn(session_id), name=f"next turn of {session_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _next_turn(self, session_id: str) -> None:
        try:
            async with self.lock(session_id):
                await self.take_turns(session_id)
            self._watches.wake(session_id)
        except AgentRunnerError as error:
            log.warning("next turn waits for the reconciler", session_id=session_id, error=str(error))

    async def stop(self, record: ExecutionRecord, reason: str) -> None:
        """Ask the workflow of an execution to stop; without one, the execution ends at once."""
        async with self.lock(record.session_id):
            await self._stop(record, reason)

    async def _stop(self, record: ExecutionRecord, reason: str) -> None:
        if await self._turns.holder(record.session_id) == record.id:
            try:
                if await self._workflows.cancel(record.id):
                    return
            except UnavailableError as error:
                # The runner is told with its next append, and the reconciler asks again.
                log.warning("cancel waits for Temporal", execution_id=record.id, error=str(error))
                return
        await self._end(record.id, EXECUTION_CANCELLED, reason)

    async def _end(self, execution_id: str, phase: ExecutionPhase.ValueType, error: str) -> bool:
        change = PhaseChanged(phase=phase, error=error)
        return await self._events.record(execution_id, ExecutionEvent(phase_changed=change))

    # Reconciling; the session's lock is held

    async def _is_unfinished(self, record: ExecutionRecord) -> bool:
        """Whether the log says so too; lists learn of the phase when they lag behind."""
        try:
            return not is_terminal(await self._watches.mended_phase(record))
        except NotFoundError:
            return False  # deleted since

    async def _reconcile_session(self, session_id: str, done: Reconciled) -> None:
        holder = await self._turns.holder(session_id)
        try:
            record, status, time = await self._watches.status(holder) if holder else (None, None, "")
        except NotFoundError:
            record = status = None
        if record is None or status is None or is_terminal(status.phase):
            done.started += await self.take_turns(session_id)
        elif not await self._workflows.running(record.id):
            begun = status.run.attempt > 0 or status.phase != EXECUTION_PENDING
            await self._mend(record, time, begun, status.run.cancel_requested, done)
        elif status.run.cancel_requested:
            await self._workflows.cancel(record.id)

    async def _mend(
        self, record: ExecutionRecord, time: str, begun: bool, cancelled: bool, done: Reconciled
    ) -> None:
        """Deal with an execution that has the turn and no workflow."""
        if cancelled:
            done.cancelled += await self._end(record.id, EXECUTION_CANCELLED, "")
        elif not begun and self._starts.get(record.id, 0) < _MOST_STARTS:
            self._starts[record.id] = self._starts.get(record.id, 0) + 1
            await self.start(record.message())
            done.started += 1
        elif self._is_old(record, time):
            problem = "The workflow of the execution ended without reporting a result."
            done.failed += await self._end(record.id, EXECUTION_FAILED, problem)

    def _is_old(self, record: ExecutionRecord, time: str) -> bool:
        if time:
            try:
                moment = datetime.fromisoformat(time)
            except ValueError:
                moment = datetime.min.replace(tzinfo=UTC)
        else:
            moment = record.message().status.audit.status_audit.updated_at.ToDatetime(UTC)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return self._clock() - moment > _SILENCE

    async def _all(self, phase: ExecutionPhase.ValueType) -> AsyncIterator[ExecutionRecord]:
        after: str | None = None
        while True:
            rows = await self._store.list(
                AGENT_EXECUTION.name,
                fields={"phase": phase_name(phase)},
                oldest_first=True,
                after=after,
                limit=MOST,
            )
            for row in rows:
                yield ExecutionRecord(row)
            if len(rows) < MOST:
                return
            after = rows[-1].key.id
