"""Mending what a crash or an outage has left: a look at start, and from time to time.

What a look costs follows from how many sessions have something to do, not from how many executions wait
in them: in each it reads the execution that has the turn, or the next in line where the turn is free.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from agent_runner.domain.kinds import AGENT_EXECUTION
from agent_runner.domain.paging import MOST
from agent_runner.domain.phases import TERMINAL_PHASES, UNFINISHED_PHASES, is_terminal, phase_name
from agent_runner.errors import AgentRunnerError, NotFoundError, UnavailableError
from agent_runner.ports.stores import ResourceStore
from agent_runner.ports.workflows import WorkflowStarter
from agent_runner.services._clocks import Clock
from agent_runner.services.events import EventService
from agent_runner.services.execution_records import CALLER, ExecutionRecord, key_of
from agent_runner.services.execution_runs import ExecutionRuns
from agent_runner.services.metrics import Counters
from agent_runner.services.turns import SessionTurns
from agent_runner.services.watching import WatchService
from agent_runner.v1.events_pb2 import ExecutionEvent, Paused
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus
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
"""How often the reconciler starts the workflow of an execution that has none."""
_COMPARED: Final = 200
"""Of those that wait, so many are compared with their logs at each look after the first."""


@dataclass(slots=True)
class Reconciled:
    """What a look has mended.

    Attributes:
        restarted: of those started: had run before, and go on from their checkpoints.
        orphans: workflows without an execution, terminated.
        told: callers of executions that had ended, told at last.
    """

    started: int = 0
    restarted: int = 0
    failed: int = 0
    cancelled: int = 0
    orphans: int = 0
    told: int = 0


class Reconciler:
    """Compares executions with their logs and with Temporal, and mends what differs."""

    def __init__(
        self,
        store: ResourceStore,
        *,
        runs: ExecutionRuns,
        turns: SessionTurns,
        events: EventService,
        watches: WatchService,
        workflows: WorkflowStarter,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._store = store
        self._runs = runs
        self._turns = turns
        self._events = events
        self._watches = watches
        self._workflows = workflows
        self._clock = clock
        self._counters = counters
        self._orphans: frozenset[str] = frozenset()
        self._starts: dict[tuple[str, str], int] = {}
        """How often an execution was started, by session and id."""
        self._compared: dict[ExecutionPhase.ValueType, str | None] = {}
        """By phase the id up to which lists were compared with logs; None: begin anew."""
        self._compared_all = False

    async def reconcile(self) -> Reconciled:
        """Look at all sessions with something to do, and mend what a crash or an outage has left.

        An execution whose turn it is and which has no workflow is started, and goes on from its checkpoint;
        one that loses it again and again is ended as FAILED; where the turn is free, the next one gets it.
        Workflows without an execution are terminated, callers who were not told are told.

        Raises:
            UnavailableError: the store is away.
        """
        await self._compare_lists()
        sessions, done = await self._turns.sessions(), Reconciled()
        try:
            await self._reconcile_sessions(sessions, done)
            await self._tell_callers(done)
            await self._end_orphans(done)
        except UnavailableError as error:
            log.warning("reconciling stopped", error=str(error))
        self._note(done)
        return done

    def _note(self, done: Reconciled) -> None:
        mended = {name: number for name, number in asdict(done).items() if number}
        for name, number in mended.items():
            self._counters.add(f"reconciled_{name}", number)
        if mended:
            log.info("reconciled", **mended)

    # Lists

    async def _compare_lists(self) -> None:
        """Compare what lists know with the logs.

        A crash, of whatever process, leaves them apart for good; so at the first look all that has not
        ended is compared. Later ones go through it piece by piece: whose turn it is or is next is
        compared in any case, and for the others nothing but their place in the queue follows from it.
        """
        for phase in UNFINISHED_PHASES:
            await self._compare(phase, _COMPARED if self._compared_all else None)
        self._compared_all = True

    async def _compare(self, phase: ExecutionPhase.ValueType, most: int | None) -> None:
        """Compare at most so many of a phase, from where the last look stopped to the end of the list."""
        compared, size = 0, min(most or MOST, MOST)
        while most is None or compared < most:
            rows = await self._store.list(
                AGENT_EXECUTION.name,
                fields={"phase": phase_name(phase)},
                oldest_first=True,
                after=self._compared.get(phase),
                limit=size,
            )
            for row in rows:
                with suppress(NotFoundError):  # deleted since
                    await self._watches.mended_phase(ExecutionRecord(row))
            compared += len(rows)
            self._compared[phase] = rows[-1].key.id if len(rows) == size else None
            if len(rows) < size:
                return

    async def _compare_first(self, session_id: str) -> None:
        """Compare the first in line with its log, until it is one that has not ended."""
        seen = ""
        while first := await self._turns.unfinished(session_id, limit=1):
            record = first[0]
            if record.id == seen or not is_terminal(await self._watches.mended_phase(record)):
                return
            seen = record.id

    # Sessions

    async def _reconcile_sessions(self, sessions: Sequence[str], done: Reconciled) -> None:
        for session_id in sessions:
            try:
                async with self._runs.lock(session_id):
                    await self._compare_first(session_id)
                    await self._reconcile_session(session_id, done)
            except NotFoundError:
                log.debug("deleted since", session_id=session_id)
            except UnavailableError:
                raise
            except AgentRunnerError as error:  # one session must not keep the others from being looked at
                log.warning("session not reconciled", session_id=session_id, error=str(error))
        still = frozenset(sessions)
        self._starts = {key: number for key, number in self._starts.items() if key[0] in still}

    async def _reconcile_session(self, session_id: str, done: Reconciled) -> None:
        """See to who has the turn of a session, or may have it."""
        holder = await self._turns.holder(session_id)
        held = await self._status(holder)
        if held is None or is_terminal(held.phase):
            done.started += await self._runs.take_turns(session_id)
        elif held.run.paused and not held.run.cancel_requested:
            return  # it may wait for ever, and Temporal need not be asked each time
        elif not await self._workflows.running(holder):
            # It may have ended since it was looked at.
            record, status, time = await self._watches.status(holder)
            rests = status.run.paused and not status.run.cancel_requested
            if not is_terminal(status.phase) and not rests:
                await self._mend(record, time, status, done)
        elif held.run.cancel_requested:
            await self._workflows.cancel(holder)

    async def _status(self, execution_id: str) -> AgentExecutionStatus | None:
        """The status of an execution; None when there is none."""
        if not execution_id:
            return None
        try:
            _record, status, _time = await self._watches.status(execution_id)
        except NotFoundError:
            return None
        return status

    async def _mend(
        self, record: ExecutionRecord, time: str, status: AgentExecutionStatus, done: Reconciled
    ) -> None:
        """Deal with an execution that has the turn and no workflow."""
        key = record.session_id, record.id
        if status.run.cancel_requested:
            done.cancelled += await self._runs.end(record.id, EXECUTION_CANCELLED, "")
        elif status.run.pause_requested:
            await self._events.record(record.id, ExecutionEvent(paused=Paused()))
        elif self._starts.get(key, 0) < _MOST_STARTS:
            self._starts[key] = self._starts.get(key, 0) + 1
            begun = status.run.attempt > 0 or status.phase != EXECUTION_PENDING
            log.warning("execution without workflow, starting it", execution_id=record.id, begun=begun)
            await self._runs.start(record.message(), again=True)
            done.started += 1
            done.restarted += begun
        elif self._is_old(record, time):
            problem = "The workflow of the execution ended again and again without reporting a result."
            done.failed += await self._runs.end(record.id, EXECUTION_FAILED, problem)

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

    # Callers and workflows

    async def _tell_callers(self, done: Reconciled) -> None:
        """Tell callers of executions that have ended and have no workflow any more."""
        for phase in sorted(TERMINAL_PHASES):
            async for record in self._listed({CALLER: "waiting", "phase": phase_name(phase)}):
                with suppress(NotFoundError):  # deleted since
                    ended = is_terminal(await self._watches.phase(record.id))
                    if ended and await self._runs.tell_caller(record):
                        log.warning("caller was not told, telling it now", execution_id=record.id)
                        done.told += 1

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

    async def _listed(self, fields: Mapping[str, str]) -> AsyncIterator[ExecutionRecord]:
        after: str | None = None
        while True:
            rows = await self._store.list(
                AGENT_EXECUTION.name, fields=fields, oldest_first=True, after=after, limit=MOST
            )
            for row in rows:
                yield ExecutionRecord(row)
            if len(rows) < MOST:
                return
            after = rows[-1].key.id
