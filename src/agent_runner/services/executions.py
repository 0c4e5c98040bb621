"""Executions: making them, running them in turn, ending them."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from agent_runner.domain.ids import canonical_id, suffix
from agent_runner.domain.kinds import AGENT_EXECUTION
from agent_runner.domain.paging import PageRequest
from agent_runner.domain.phases import is_terminal, phase_name, phase_word
from agent_runner.errors import (
    AgentRunnerError,
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from agent_runner.ports.stores import ResourceStore, StoredResource
from agent_runner.ports.workflows import WorkflowStarter
from agent_runner.services._clocks import Clock, NewId
from agent_runner.services._foreign_status import as_logged
from agent_runner.services.agent_instances import AgentInstanceService
from agent_runner.services.agents import AgentService
from agent_runner.services.environments import ExecutionEnvironments, context_key
from agent_runner.services.events import EventService
from agent_runner.services.execution_records import (
    STEERS,
    ExecutionRecord,
    ExecutionRecords,
    fields_of,
    key_of,
)
from agent_runner.services.execution_runs import ExecutionRuns
from agent_runner.services.resources import Page, ResourceService
from agent_runner.services.secret_fields import SecretFields
from agent_runner.services.sessions import SessionService
from agent_runner.services.tool_results import ToolResultService
from agent_runner.services.turns import SessionTurns
from agent_runner.services.validation import validate
from agent_runner.services.watching import WatchService
from agent_runner.v1.events_pb2 import (
    CancelRequested,
    ExecutionEvent,
    PauseRequested,
    Resumed,
    SteeringRequested,
)
from agent_runner.v1.options_pb2 import (
    BUSY_POLICY_INTERRUPT,
    BUSY_POLICY_REJECT,
    BUSY_POLICY_STEER,
    BusyPolicy,
)
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.command_pb2 import AgentExecutionUpdateStatusInput
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_PENDING,
    EXECUTION_PHASE_UNSPECIFIED,
    ExecutionPhase,
)
from ai.stigmer.agentic.session.v1.api_pb2 import Session

log = structlog.get_logger(__name__)

MOST_MESSAGE_BYTES: Final = 4 << 20
MOST_STEERING_BYTES: Final = 64 << 10
"""Of a message that joins a running turn; a longer one waits for a turn of its own."""
LIGHT_ENTRY_BYTES: Final = 32 << 10
"""A list shows larger statuses without messages, tool calls and sub-agents."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an execution runs: its session, and that session itself when it is new."""

    session_id: str
    agent_id: str
    org: str
    new_session: Session | None = None


class ExecutionService(ResourceService[AgentExecution]):
    """Creates executions, one turn at a time per session, and follows them to their end."""

    def __init__(
        self,
        store: ResourceStore,
        *,
        agents: AgentService,
        instances: AgentInstanceService,
        sessions: SessionService,
        records: ExecutionRecords,
        turns: SessionTurns,
        events: EventService,
        watches: WatchService,
        runs: ExecutionRuns,
        workflows: WorkflowStarter,
        results: ToolResultService,
        variables: ExecutionEnvironments,
        clock: Clock,
        new_id: NewId,
        secrets: SecretFields | None = None,
    ) -> None:
        super().__init__(AGENT_EXECUTION, store, clock=clock, new_id=new_id, secrets=secrets)
        self._agents = agents
        self._instances = instances
        self._sessions = sessions
        self._records = records
        self._turns = turns
        self._events = events
        self._watches = watches
        self._runs = runs
        self._workflows = workflows
        self._results = results
        self._variables = variables

    async def create(self, request: AgentExecution) -> AgentExecution:
        """Store an execution and start it, or let it wait for its session: both or neither.

        Raises:
            InvalidRequestError: a field is wrong; neither session nor agent is named.
            NotFoundError: the session or the agent is not there.
            FailedPreconditionError: the session is busy and the request does not want to wait.
            WorkflowServiceUnavailableError: nothing was stored.
        """
        validate(request)
        _check_spec(request)
        place = await self._place(request)
        async with self._runs.lock(place.session_id):
            busy = [] if place.new_session else await self._unfinished(place.session_id)
            _check_busy(request, busy)
            # Within the lock, so that ids sort in the order in which turns are taken.
            execution = self._complete(request, place)
            steered = await self._steered(execution, busy)
            has_turn = await self._store_new(execution, place, idle=not busy, steers=steered)
            try:
                await self._ensure_session(execution, place)
                if steered:
                    await self._steer(execution, steered)
                elif has_turn:
                    await self._runs.start(execution)
                else:
                    await self._runs.take_turns(place.session_id, execution)
            except AgentRunnerError:
                await self._undo(execution, place)
                raise
        if request.spec.execution_config.options.if_busy == BUSY_POLICY_INTERRUPT:
            await self._interrupt(busy)
        return await self._watches.execution(execution.metadata.id)

    async def _steered(self, execution: AgentExecution, busy: Sequence[ExecutionRecord]) -> str:
        """The execution whose turn the message is to join; empty when it runs by itself."""
        spec = execution.spec
        if not busy or spec.execution_config.options.if_busy != BUSY_POLICY_STEER:
            return ""
        if len(spec.message.encode()) > MOST_STEERING_BYTES:
            return ""
        holder = await self._turns.holder(spec.session_id)
        return "" if await self._runs.has_ended(holder) else holder

    async def _steer(self, execution: AgentExecution, joined: str) -> None:
        asked = SteeringRequested(execution_id=execution.metadata.id)
        try:
            is_told = await self._events.record(joined, ExecutionEvent(steering_requested=asked))
        except NotFoundError:
            is_told = False
        if not is_told:
            # It has ended or was deleted meanwhile, and so the message has the next turn.
            await self._runs.take_turns(execution.spec.session_id, execution)

    async def update(self, request: AgentExecution) -> AgentExecution:
        """Replace metadata and spec; session, agent and status stay."""
        if not request.metadata.id:
            raise InvalidRequestError.of("metadata.id", "must name the execution to change")
        changed = await super().update(request)
        await self._watches.replace_record(await self._records.get(changed.metadata.id))
        return await self._watches.execution(changed.metadata.id)

    async def apply(self, request: AgentExecution) -> AgentExecution:
        """Executions have no apply: names may repeat."""
        raise FailedPreconditionError(
            "An execution is created, not applied: its name may be there many times."
        )

    async def get(self, resource_id: str) -> AgentExecution:
        """An execution with its status as it is now."""
        return await self._watches.execution(self._key(resource_id).id)

    async def delete(self, resource_id: str) -> AgentExecution:
        """Remove an execution and what is its own, stopping it when it runs. Safe to repeat if it broke off.

        Raises:
            NotFoundError: there is none.
            WorkflowServiceUnavailableError: it runs and cannot be stopped now; nothing was removed.
            UnavailableError: the store is away; nobody finds it any more, and the next sweep removes it.
        """
        record = await self._records.get_even_going(self._key(resource_id).id)
        execution = record.message()
        if not record.is_going:
            execution = await self.get(record.id)
            if not is_terminal(execution.status.phase):
                await self._workflows.terminate(record.id, "The execution was deleted.")
            record = await self._records.get(record.id)
        await self._results.remove(record)
        await self._records.mark_going(record.id)
        await _quietly(self._store.delete(context_key(record.id)))
        await self._watches.forget(record.id)
        await self._store.delete(key_of(record.id))
        await self._results.remove_late(record)
        self._runs.hand_on(execution.spec.session_id)
        return execution

    async def update_status(self, request: AgentExecutionUpdateStatusInput) -> AgentExecution:
        """Merge the status a runner of the Stigmer API sends; after the end nothing changes any more.

        Such a runner masks nothing by itself: secrets of the execution's variables are masked here.

        Raises:
            NotFoundError: there is no such execution.
        """
        validate(request)
        execution_id = self._key(request.execution_id, "execution_id").id
        merged = as_logged(request.status, await self._variables.masker(execution_id))
        await self._events.record(execution_id, ExecutionEvent(status_merged=merged))
        return await self._watches.execution(execution_id)

    async def cancel(self, execution_id: str, reason: str = "") -> AgentExecution:
        """Ask a running execution to stop; one that waits or has no workflow ends at once.

        Raises:
            NotFoundError: there is no such execution.
            FailedPreconditionError: it has ended already.
        """
        record, status, _time = await self._watches.status(self._key(execution_id, "execution_id").id)
        if is_terminal(status.phase):
            raise _ended(record.id, status.phase)
        if not status.run.cancel_requested:
            event = ExecutionEvent(cancel_requested=CancelRequested(reason=reason[:1000]))
            if not await self._events.record(record.id, event):
                raise _ended(record.id, await self._watches.phase(record.id))
        await self._runs.stop(record, reason)
        return await self._watches.execution(record.id)

    async def terminate(self, execution_id: str, reason: str = "") -> AgentExecution:
        """End an execution without asking its runner.

        Raises:
            NotFoundError: there is no such execution.
            FailedPreconditionError: it has ended already.
            WorkflowServiceUnavailableError: nothing was done.
        """
        record, status, _time = await self._watches.status(self._key(execution_id, "execution_id").id)
        text = reason[:1000] or "The execution was terminated."
        if is_terminal(status.phase):
            raise _ended(record.id, status.phase)
        if not await self._runs.terminate(record, text):
            # A runner that learned of it first has said so itself; one that was done before has won.
            phase = await self._watches.phase(record.id)
            if phase != EXECUTION_CANCELLED:
                raise _ended(record.id, phase)
        return await self._watches.execution(record.id)

    async def pause(self, execution_id: str, reason: str = "") -> AgentExecution:
        """Ask a running execution to stop after its super-step; one that waits is paused at once.

        Raises:
            NotFoundError: there is no such execution.
            FailedPreconditionError: it has ended already.
        """
        record, status, _time = await self._watches.status(self._key(execution_id, "execution_id").id)
        if is_terminal(status.phase):
            raise _ended(record.id, status.phase)
        asked = ExecutionEvent(pause_requested=PauseRequested(reason=reason[:1000]))
        if not status.run.pause_requested and not await self._events.record(record.id, asked):
            raise _ended(record.id, await self._watches.phase(record.id))
        if not status.run.paused:
            await self._runs.pause(record)
        return await self._watches.execution(record.id)

    async def resume(self, execution_id: str) -> AgentExecution:
        """Let a paused execution go on; one that has not stopped yet does not.

        Raises:
            NotFoundError: there is no such execution.
            FailedPreconditionError: it has ended already.
        """
        record, status, _time = await self._watches.status(self._key(execution_id, "execution_id").id)
        if is_terminal(status.phase):
            raise _ended(record.id, status.phase)
        if status.run.pause_requested:
            await self._events.record(record.id, ExecutionEvent(resumed=Resumed()))
        if status.run.paused:
            try:
                await self._runs.resume(record)
            except UnavailableError as error:
                log.warning("resume waits for Temporal", execution_id=record.id, error=str(error))
        return await self._watches.execution(record.id)

    async def list_executions(
        self,
        page: PageRequest,
        *,
        session_id: str = "",
        phase: ExecutionPhase.ValueType = EXECUTION_PHASE_UNSPECIFIED,
        tags: Sequence[str] = (),
    ) -> Page[AgentExecution]:
        """One page, newest first. Large statuses are shown without what was said and done."""
        return await self.list(page, fields=_filter(session_id, phase), tags=tags)

    async def count_executions(
        self, *, session_id: str = "", phase: ExecutionPhase.ValueType = EXECUTION_PHASE_UNSPECIFIED
    ) -> int:
        return await self.count(_filter(session_id, phase))

    async def _listed(self, found: Sequence[AgentExecution]) -> Sequence[AgentExecution]:
        shown: list[AgentExecution] = []
        for entry in found:
            try:
                execution = await self._watches.execution(entry.metadata.id)
            except NotFoundError:
                continue  # deleted since
            if execution.status.ByteSize() > LIGHT_ENTRY_BYTES:
                for part in ("messages", "tool_calls", "sub_agent_executions"):
                    execution.status.ClearField(part)
            shown.append(execution)
        return shown

    # Making

    async def _place(self, request: AgentExecution) -> _Place:
        spec = request.spec
        if spec.session_id:
            return await self._place_in_session(canonical_id(spec.session_id), canonical_id(spec.agent_id))
        agent = await self._agents.get(spec.agent_id)
        instance = await self._agents.default_instance(agent)
        org = request.metadata.org or agent.metadata.org
        session = self._sessions.automatic(instance, org)
        return _Place(session.metadata.id, agent.metadata.id, org, session)

    async def _place_in_session(self, session_id: str, agent_id: str) -> _Place:
        session = await self._sessions.get(session_id)
        instance = await self._instances.get(session.spec.agent_instance_id)
        if agent_id and agent_id != instance.spec.agent_id:
            raise InvalidRequestError.of(
                "spec.agent_id", f"must be the session's agent, {instance.spec.agent_id}, or left out"
            )
        return _Place(session_id, instance.spec.agent_id, session.metadata.org)

    def _complete(self, request: AgentExecution, place: _Place) -> AgentExecution:
        named = bool(request.metadata.name or request.metadata.slug)
        execution = self._fresh(request, None if named else "")
        metadata = execution.metadata
        if not named:
            metadata.name = metadata.slug = f"execution-{suffix(metadata.id)}"
        metadata.org = metadata.org or place.org
        execution.spec.session_id, execution.spec.agent_id = place.session_id, place.agent_id
        return execution

    async def _store_new(self, execution: AgentExecution, place: _Place, *, idle: bool, steers: str) -> bool:
        """Store execution, first event, and what a new session needs, in one go.

        Returns:
            Whether it has the turn, which is taken along where the session is idle.
        """
        self._secrets.seal(self.spec.name, execution)
        fields = fields_of(execution, EXECUTION_PENDING)
        stored = self._stored(execution, {**fields, STEERS: steers} if steers else fields)
        ours: list[int] = []
        turn: list[bool] = []

        def writes() -> list[Awaitable[object]]:
            begun: list[Awaitable[object]] = [self._put_new(stored, ours)]
            if place.new_session is not None:
                session = self._sessions.stored(place.new_session, place.agent_id)
                begun.append(self._store.put(session, expected=0))
                begun.append(self._turns.give(place.session_id, execution.metadata.id))
                turn.append(True)
            elif idle:
                begun.append(self._take_turn(place.session_id, execution.metadata.id, turn))
            return begun

        try:
            await self._events.begin(ExecutionRecord(_written(stored)), writes)
        except AgentRunnerError:
            # Where the id was taken, execution and log are someone else's.
            await self._undo(execution if ours else None, place)
            raise
        return any(turn)

    async def _take_turn(self, session_id: str, execution_id: str, taken: list[bool]) -> None:
        taken.append(await self._turns.claim(session_id, execution_id, self._runs.has_ended))

    async def _put_new(self, stored: StoredResource, done: list[int]) -> None:
        done.append(await self._store.put(stored, expected=0))

    async def _undo(self, execution: AgentExecution | None, place: _Place) -> None:
        if execution is not None:
            await _quietly(self._store.delete(key_of(execution.metadata.id)))
            await self._watches.forget(execution.metadata.id)
        if place.new_session is not None:
            await _quietly(self._sessions.discard(place.session_id))

    async def _ensure_session(self, execution: AgentExecution, place: _Place) -> None:
        """Take an execution back whose session was removed while it was stored.

        Raises:
            NotFoundError: it was.
        """
        if place.new_session is not None:
            return
        try:
            await self._sessions.get(place.session_id)
        except NotFoundError:
            await self._undo(execution, place)
            await self._turns.forget(place.session_id)
            raise

    async def _unfinished(self, session_id: str) -> list[ExecutionRecord]:
        """Who holds a session up: the first few."""
        records = await self._turns.unfinished(session_id, limit=5)
        return [r for r in records if not is_terminal(await self._watches.phase(r.id))]

    async def _interrupt(self, busy: Sequence[ExecutionRecord]) -> None:
        for record in busy[:1]:
            try:
                await self.cancel(record.id, "A newer execution of the session took its place.")
            except (FailedPreconditionError, NotFoundError):
                continue  # ended meanwhile

    async def _check(self, resource: AgentExecution, before: AgentExecution | None) -> Mapping[str, str]:
        if before is None:
            return fields_of(resource, EXECUTION_PENDING)
        # What an execution belongs to and waits for is settled when it is made.
        for name in ("session_id", "agent_id", "callback_token"):
            setattr(resource.spec, name, getattr(before.spec, name))
        _check_spec(resource)
        stored = await self._store.get(key_of(before.metadata.id))
        return stored.fields


def _written(stored: StoredResource) -> StoredResource:
    return replace(stored, version=1)


def _check_spec(request: AgentExecution) -> None:
    spec = request.spec
    if not spec.message:
        raise InvalidRequestError.of("spec.message", "must not be empty", "string.min_len")
    size = len(spec.message.encode())
    if size > MOST_MESSAGE_BYTES:
        raise InvalidRequestError.of(
            "spec.message",
            f"has {size} bytes; at most {MOST_MESSAGE_BYTES} are taken. Put the text into a file instead.",
            "string.max_bytes",
        )
    if not spec.session_id and not spec.agent_id:
        raise InvalidRequestError.of("spec.session_id", "must name a session, or spec.agent_id an agent")


def _check_busy(request: AgentExecution, busy: Sequence[ExecutionRecord]) -> None:
    policy: BusyPolicy.ValueType = request.spec.execution_config.options.if_busy
    if policy == BUSY_POLICY_REJECT and busy:
        raise FailedPreconditionError(
            f"The session is busy with execution {busy[0].id!r}. Wait for its end, or ask to be queued."
        )


def _filter(session_id: str, phase: ExecutionPhase.ValueType) -> Mapping[str, str]:
    if phase not in ExecutionPhase.values():
        problem = f"{phase} is no phase; leave it out for all"
        raise InvalidRequestError.of("phase", problem, "enum.defined_only")
    fields = {"session_id": canonical_id(session_id)} if session_id else {}
    return fields | ({"phase": phase_name(phase)} if phase != EXECUTION_PHASE_UNSPECIFIED else {})


def _ended(execution_id: str, phase: ExecutionPhase.ValueType) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"Execution {execution_id!r} has ended already: it is {phase_word(phase)}."
    )


async def _quietly(step: Awaitable[object]) -> None:
    try:
        await step
    except NotFoundError:
        log.debug("was gone already")
