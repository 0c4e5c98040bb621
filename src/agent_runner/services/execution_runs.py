"""Running executions in turn: starting the next one, stopping one, mending what a crash left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

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
from agent_runner.services.execution_records import CALLER, ExecutionRecord, key_of
from agent_runner.services.metrics import Counters
from agent_runner.services.secret_fields import shown
from agent_runner.services.turns import SessionTurns
from agent_runner.services.watching import WatchService
from agent_runner.v1.events_pb2 import ExecutionEvent, Paused, PhaseChanged
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_FAILED,
    EXECUTION_IN_PROGRESS,
    EXECUTION_PENDING,
    ExecutionPhase,
)

log = structlog.get_logger(__name__)

_SILENCE: Final = timedelta(seconds=60)
"""How long an execution may be without workflow and news before it is taken for lost."""
_MOST_STARTS: Final = 5
"""How often the reconciler starts the workflow of an execution that has none."""
_LOOK: Final = 10
"""How many that wait are looked at in one go, and how often: the first of them mostly is the one."""
_MOST_LOOKS: Final = 50
_CLOSING: Final = timedelta(seconds=5)
"""For the workflow of an execution that was just paused to close."""


@dataclass(slots=True)
class Reconciled:
    """What a look at all unfinished executions has found and mended.

    Attributes:
        restarted: of those started: had run before, and go on from their checkpoints.
        orphans: workflows without an execution, terminated.
        told: callers of executions that had ended, told at last.
    """

    unfinished: int = 0
    started: int = 0
    restarted: int = 0
    failed: int = 0
    cancelled: int = 0
    orphans: int = 0
    told: int = 0


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
        counters: Counters,
    ) -> None:
        self._counters = counters
        self._orphans: frozenset[str] = frozenset()
        self._store = store
        self._turns = turns
        self._events = events
        self._watches = watches
        self._workflows = workflows
        self._clock = clock
        self._locks = KeyedLocks()
        self._tasks: set[asyncio.Task[object]] = set()
        self._starts: dict[str, int] = {}

    def lock(self, session_id: str) -> AbstractAsyncContextManager[None]:
        """Held while it is settled who comes next in a session."""
        return self._locks.hold(session_id)

    async def reconcile(self) -> Reconciled:
        """Look at all unfinished executions and mend what a crash or an outage has left.

        Those whose turn it is and which have no workflow are started, and go on from their checkpoints;
        those which lose it again and again are ended as FAILED; waiting ones move up. Workflows without
        an execution are terminated, callers who were not told are told.
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
        else:
            await self._reconcile_workflows(done)
        self._note(done)
        return done

    async def _reconcile_workflows(self, done: Reconciled) -> None:
        try:
            await self._tell_callers(done)
            await self._end_orphans(done)
        except UnavailableError as error:
            log.warning("reconciling stopped", error=str(error))

    def _note(self, done: Reconciled) -> None:
        mended = {name: number for name, number in asdict(done).items() if name != "unfinished" and number}
        for name, number in mended.items():
            self._counters.add(f"reconciled_{name}", number)
        if mended:
            log.info("reconciled", **mended)

    def ended(self, record: ExecutionRecord) -> None:
        """Start what waits for the turn of an execution that has ended, and see to its caller."""
        self.hand_on(record.session_id)
        if record.caller_waits:
            self._in_background(self._tell_caller(record), f"caller of {record.id}")

    async def told(self, execution_id: str) -> None:
        """Note that whoever waited for the end of an execution was told; nothing when it is gone."""
        with suppress(NotFoundError):
            await self._watches.set_fields(execution_id, {CALLER: "told"})

    async def _tell_caller(self, record: ExecutionRecord) -> bool:
        """Have a caller told where no workflow is there to do so."""
        try:
            if await self._workflows.running(record.id):
                return False
            message = record.message()
            await self._workflows.start(
                record.id,
                message.spec.session_id,
                message.spec.agent_id,
                waiting_caller=True,
                again=True,
                only_tell_caller=True,
            )
        except UnavailableError as error:
            log.warning("caller waits for Temporal", execution_id=record.id, error=str(error))
            return False
        return True

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
        for _ in range(_MOST_LOOKS):
            waiting = await self._turns.waiting(session_id, limit=_LOOK)
            for record in waiting:
                _record, status, _time = await self._watches.status(record.id)
                if is_terminal(status.phase) or status.phase == EXECUTION_IN_PROGRESS:
                    continue  # the index lagged behind; looking has mended it
                if await self._has_joined(record):
                    continue
                # A paused one keeps its place, and those behind it wait.
                if status.run.paused or not await self._turns.claim(session_id, record.id, self.has_ended):
                    return 0
                return await self._start_next(record, new)
            if len(waiting) < _LOOK:
                break
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

    async def _has_joined(self, record: ExecutionRecord) -> bool:
        """Whether the turn of another one has taken the message; then the execution is over."""
        if not record.steers:
            return False
        try:
            _record, status, _time = await self._watches.status(record.steers)
        except NotFoundError:
            return False
        if record.id not in status.run.joined:
            return False
        await self._events.end_joined(record.id, record.steers)
        return True

    async def start(self, execution: AgentExecution, *, again: bool = False) -> None:
        """Start the workflow of an execution that has the turn.

        Args:
            again: also when it has had one.

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
            again=again,
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
        self._in_background(self._next_turn(session_id), f"next turn of {session_id}")

    def _in_background(self, work: Coroutine[Any, Any, object], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _next_turn(self, session_id: str) -> None:
        try:
            async with self.lock(session_id):
                await self.take_turns(session_id)
            self._watches.wake(session_id)
        except AgentRunnerError as error:
            log.warning("next turn waits for the reconciler", session_id=session_id, error=str(error))

    async def pause(self, record: ExecutionRecord) -> None:
        """Pause at once what no runner could be told to; a runner stops after its super-step."""
        async with self.lock(record.session_id):
            holds = await self._turns.holder(record.session_id) == record.id
            if not holds or not await self._workflows.running(record.id):
                await self._events.record(record.id, ExecutionEvent(paused=Paused()))

    async def resume(self, record: ExecutionRecord) -> None:
        """Let an execution that was paused go on.

        Raises:
            UnavailableError: later, when Temporal is back.
        """
        async with self.lock(record.session_id):
            if await self._turns.holder(record.session_id) != record.id:
                await self.take_turns(record.session_id)
                return
            await self._closed(record.id)
            await self.start(record.message(), again=True)

    async def _closed(self, execution_id: str) -> None:
        """Wait for the workflow of a run that stopped a moment ago; the reconciler looks again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING.total_seconds()):
                while await self._workflows.running(execution_id):  # noqa: ASYNC110 (Temporal is asked)
                    await asyncio.sleep(0.05)

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

    async def terminate(self, record: ExecutionRecord, reason: str) -> bool:
        """End an execution whatever its runner does; False when it has ended already.

        Raises:
            WorkflowServiceUnavailableError: nothing was done.
        """
        await self._workflows.terminate(record.id, reason)
        return await self._end(record.id, EXECUTION_CANCELLED, reason)

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
            # It may have ended since the first look.
            record, status, time = await self._watches.status(record.id)
            if not is_terminal(status.phase) and not status.run.paused:
                await self._mend(record, time, status, done)
        elif status.run.cancel_requested:
            await self._workflows.cancel(record.id)

    async def _mend(
        self, record: ExecutionRecord, time: str, status: AgentExecutionStatus, done: Reconciled
    ) -> None:
        """Deal with an execution that has the turn and no workflow."""
        if status.run.cancel_requested:
            done.cancelled += await self._end(record.id, EXECUTION_CANCELLED, "")
        elif status.run.pause_requested:
            await self._events.record(record.id, ExecutionEvent(paused=Paused()))
        elif self._starts.get(record.id, 0) < _MOST_STARTS:
            self._starts[record.id] = self._starts.get(record.id, 0) + 1
            begun = status.run.attempt > 0 or status.phase != EXECUTION_PENDING
            log.warning("execution without workflow, starting it", execution_id=record.id, begun=begun)
            await self.start(record.message(), again=True)
            done.started += 1
            done.restarted += begun
        elif self._is_old(record, time):
            problem = "The workflow of the execution ended again and again without reporting a result."
            done.failed += await self._end(record.id, EXECUTION_FAILED, problem)

    async def _tell_callers(self, done: Reconciled) -> None:
        """Callers of executions that have ended and have no workflow any more."""
        async for record in self._with({CALLER: "waiting"}):
            try:
                if is_terminal(await self._watches.phase(record.id)) and await self._tell_caller(record):
                    log.warning("caller was not told, telling it now", execution_id=record.id)
                    done.told += 1
            except NotFoundError:
                continue  # deleted since

    async def _end_orphans(self, done: Reconciled) -> None:
        """Workflows whose execution is not there, and was not at the last look either."""
        missing: set[str] = set()
        async for execution_id in self._workflows.unended():
            try:
                await self._store.get(key_of(execution_id))
            except NotFoundError:
                missing.add(execution_id)
        for execution_id in missing & self._orphans:
            if await self._workflows.terminate(execution_id, "Its execution was deleted."):
                log.warning("workflow without execution terminated", execution_id=execution_id)
                done.orphans += 1
        self._orphans = frozenset(missing)

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
        async for record in self._with({"phase": phase_name(phase)}):
            yield record

    async def _with(self, fields: Mapping[str, str]) -> AsyncIterator[ExecutionRecord]:
        after: str | None = None
        while True:
            rows = await self._store.list(
                AGENT_EXECUTION.name,
                fields=fields,
                oldest_first=True,
                after=after,
                limit=MOST,
            )
            for row in rows:
                yield ExecutionRecord(row)
            if len(rows) < MOST:
                return
            after = rows[-1].key.id
