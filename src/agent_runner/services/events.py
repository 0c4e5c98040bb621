"""Appending to the logs of executions: attempts, fencing, and what ends a run."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from agent_runner.domain.attempts import LIMITS, AttemptLimits, why_over
from agent_runner.domain.kinds import AGENT_EXECUTION
from agent_runner.domain.phases import is_terminal, phase_name, phase_word
from agent_runner.errors import (
    AgentRunnerError,
    AlreadyExistsError,
    FailedPreconditionError,
    FencedError,
    InvalidRequestError,
    NotFoundError,
    PositionError,
)
from agent_runner.ports.stores import LogHead
from agent_runner.services._attempt_tokens import digest_of
from agent_runner.services._journal import journal
from agent_runner.services._live import Live
from agent_runner.services._logbook import Logbook, checked
from agent_runner.services.execution_records import HOLDER, ExecutionRecord
from agent_runner.services.validation import validate
from agent_runner.v1.events_pb2 import (
    AttemptStarted,
    ExecutionEvent,
    JoinedExecution,
    MessageCompleted,
    MessageStarted,
    PhaseChanged,
)
from agent_runner.v1.runner_service_pb2 import (
    AppendEventsRequest,
    AppendEventsResponse,
    StartAttemptRequest,
    StartAttemptResponse,
    SteeringMessage,
)
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_COMPLETED,
    EXECUTION_FAILED,
    EXECUTION_PENDING,
    EXECUTION_PHASE_UNSPECIFIED,
    MESSAGE_SYSTEM,
    ExecutionPhase,
)

log = structlog.get_logger(__name__)

_TOKEN_BYTES: Final = 32
_NOT_FROM_RUNNERS: Final = frozenset(
    {
        "attempt_started",
        "status_merged",
        "cancel_requested",
        "pause_requested",
        "resumed",
        "steering_requested",
        "joined_execution",
    }
)


class EventService:
    """What runners and the control plane itself write to the logs.

    Args:
        limits: how often an execution may be lost before it is given up.
    """

    def __init__(self, logbook: Logbook, limits: AttemptLimits = LIMITS) -> None:
        self._logbook = logbook
        self._limits = limits

    async def begin(self, record: ExecutionRecord, beside: Callable[[], Sequence[Awaitable[object]]]) -> None:
        """Log that a new execution is pending, while what else belongs to it is stored.

        Args:
            beside: begins the other writes.

        Raises:
            AlreadyExistsError: the execution is there already.
            ConflictError: it has events already.
        """
        event = ExecutionEvent(phase_changed=PhaseChanged(phase=EXECUTION_PENDING))
        async with self._logbook.lives.use(record.id) as live, live.lock:
            if live.loaded:
                raise AlreadyExistsError(AGENT_EXECUTION.name, record.id)
            live.record = record
            results = await asyncio.gather(
                self._logbook.store(live, [event], LogHead()), *beside(), return_exceptions=True
            )
            # What was stored beside it failed for the better reason, such as an id that is taken.
            for result in reversed(results):
                if isinstance(result, BaseException):
                    live.stale = True
                    raise result
            # Only now: what is in memory before all of it is stored must not be taken for true.
            live.loaded = True

    async def start_attempt(self, request: StartAttemptRequest) -> StartAttemptResponse:
        """Give an execution to a worker; every earlier attempt is fenced off.

        Raises:
            NotFoundError: no such execution.
            FailedPreconditionError: it has ended; also when it ends now, lost too often.
            FencedError: a later attempt of the same workflow run holds it.
        """
        validate(request)
        # Fresh: after a conflict the record names this attempt, and that one was lost is not seen any more.
        async with self._logbook.open(request.execution_id, fresh=True) as live:
            return await self._logbook.writing(live, partial(self._start_attempt, live, request))

    async def append(self, request: AppendEventsRequest) -> AppendEventsResponse:
        """Append a runner's events; what is stored already is skipped.

        After the end nothing is stored any more, and the answer tells the runner to stop.

        Raises:
            NotFoundError: no such execution.
            FencedError: another attempt holds it.
            PositionError: `position` leaves a gap.
            InvalidRequestError: an event is not a runner's to send.
        """
        # Rules stand on the request's own fields alone, so the events need not be walked through.
        validate(
            AppendEventsRequest(
                execution_id=request.execution_id, attempt=request.attempt, position=request.position
            )
        )
        kinds = [_checked_kind(number, event) for number, event in enumerate(request.events)]
        async with self._logbook.open(request.execution_id) as live:
            answer = await self._logbook.writing(live, partial(self._append, live, request))
        for kind, event in zip(kinds, request.events, strict=True):
            if kind == "steering_joined":
                await self._joined(event.steering_joined.execution_id, live.execution_id)
        return answer

    async def record(self, execution_id: str, event: ExecutionEvent) -> bool:
        """Log an event of the control plane's own; False, and nothing logged, after the end."""
        return await self._record_all(execution_id, [event])

    async def end_joined(self, execution_id: str, joined: str) -> bool:
        """End an execution whose message has joined the turn of another one; False when it has ended."""
        message_id = f"joined-{execution_id}"
        text = f"The message joined the execution {joined}, which was running and answers it."
        return await self._record_all(
            execution_id,
            [
                ExecutionEvent(joined_execution=JoinedExecution(execution_id=joined)),
                ExecutionEvent(
                    message_started=MessageStarted(message_id=message_id, type=MESSAGE_SYSTEM, content=text)
                ),
                ExecutionEvent(message_completed=MessageCompleted(message_id=message_id)),
                ExecutionEvent(phase_changed=PhaseChanged(phase=EXECUTION_COMPLETED)),
            ],
        )

    async def _record_all(self, execution_id: str, events: Sequence[ExecutionEvent]) -> bool:
        async with self._logbook.open(execution_id) as live:
            return await self._logbook.writing(live, partial(self._append_own, live, events))

    async def _joined(self, execution_id: str, joined: str) -> None:
        try:
            record = await self._logbook.records.get(checked(execution_id))
            if record.steers == joined:
                await self.end_joined(execution_id, joined)
        except AgentRunnerError as error:
            # Looked at again before it would get a turn of its own.
            log.warning("joined execution was not ended", execution_id=execution_id, error=str(error))

    async def _start_attempt(
        self, live: Live, request: StartAttemptRequest, head: LogHead
    ) -> StartAttemptResponse:
        if live.terminal:
            raise _over(live)
        lost = live.fold.run.held and not _asks_again(live, request)
        await self._hold(live, request, head)
        if lost and (problem := why_over(live.fold.status, self._limits)) is not None:
            end = PhaseChanged(phase=EXECUTION_FAILED, error=problem)
            await self._logbook.store(live, [ExecutionEvent(phase_changed=end)], head)
            raise _over(live)
        calls = await journal(self._logbook.events, live.execution_id) if head.attempt else []
        attempt = head.attempt + 1
        event = ExecutionEvent(
            attempt=attempt,
            attempt_started=AttemptStarted(worker=request.worker, resumed=request.resumed, lost_before=lost),
        )
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        head = replace(head, attempt=attempt, position=0, token=digest_of(token))
        await self._logbook.store(live, [event], head)
        run = live.fold.run
        return StartAttemptResponse(
            attempt=attempt,
            execution=live.execution(),
            tool_calls=calls,
            steering=await self._steering(live, [*run.joined, *run.steering]),
            token=token,
        )

    async def _steering(self, live: Live, execution_ids: Iterable[str]) -> list[SteeringMessage]:
        """Messages that are to join a turn; none of executions that were stopped or deleted before."""
        found: list[SteeringMessage] = []
        for execution_id in execution_ids:
            try:
                record = await self._logbook.records.get(execution_id)
            except NotFoundError:
                continue
            if record.phase == phase_name(EXECUTION_PENDING) or execution_id in live.fold.run.joined:
                text = record.message().spec.message
                found.append(SteeringMessage(execution_id=execution_id, text=text))
        return found

    async def _hold(self, live: Live, request: StartAttemptRequest, head: LogHead) -> None:
        """Note which attempt of which workflow run holds the execution.

        The first attempt of a run is kept in memory alone: nothing earlier could come late.

        Raises:
            FencedError: a later attempt of the same run holds it.
        """
        assert live.record is not None
        run, _, number = (live.record.holder or live.holder).rpartition("/")
        if run and run == request.workflow_run_id and request.activity_attempt < int(number):
            raise FencedError(live.execution_id, request.activity_attempt, head.attempt)
        if not request.workflow_run_id:
            return
        holder = _holder(request)
        if request.activity_attempt > 1 or live.record.holder:
            live.record = await self._logbook.records.set_fields(live.record, {HOLDER: holder})
        live.holder = holder

    async def _append(self, live: Live, request: AppendEventsRequest, head: LogHead) -> AppendEventsResponse:
        if request.attempt != head.attempt:
            raise FencedError(live.execution_id, request.attempt, head.attempt)
        end = request.position + len(request.events)
        if live.terminal:
            return AppendEventsResponse(last_seq=live.seq, next_position=end, cancel_requested=True)
        if request.position > head.position:
            raise PositionError(live.execution_id, request.position, head.position)
        new = _until_end(request.events[head.position - request.position :])
        if end > head.position:
            for event in new:
                event.attempt = request.attempt
            await self._logbook.store(live, new, replace(head, position=end))
        return AppendEventsResponse(
            last_seq=live.seq,
            next_position=max(end, head.position),
            cancel_requested=live.cancel_requested,
            pause_requested=live.fold.run.pause_requested,
            steering=await self._steering(live, live.fold.run.steering) if live.fold.run.steering else (),
        )

    async def _append_own(self, live: Live, events: Sequence[ExecutionEvent], head: LogHead) -> bool:
        if live.terminal:
            return False
        copies = [ExecutionEvent() for _ in events]
        for copy, event in zip(copies, events, strict=True):
            copy.CopyFrom(event)
            copy.attempt = 0
        await self._logbook.store(live, copies, head)
        return True


def _over(live: Live) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"Execution {live.execution_id!r} has ended: it is {phase_word(live.phase)}."
    )


def _asks_again(live: Live, request: StartAttemptRequest) -> bool:
    """Whether the worker that holds the execution asks once more, as when the answer did not reach it."""
    assert live.record is not None
    return bool(request.workflow_run_id) and (live.record.holder or live.holder) == _holder(request)


def _holder(request: StartAttemptRequest) -> str:
    return f"{request.workflow_run_id}/{request.activity_attempt}"


def _checked_kind(number: int, event: ExecutionEvent) -> str | None:
    kind = event.WhichOneof("event")
    if kind in _NOT_FROM_RUNNERS:
        raise InvalidRequestError.of(f"events[{number}].{kind}", "is the control plane's to log")
    if kind == "phase_changed":
        phase = event.phase_changed.phase
        if phase == EXECUTION_PHASE_UNSPECIFIED or phase not in ExecutionPhase.values():
            raise InvalidRequestError.of(f"events[{number}].phase_changed.phase", "must be a phase")
    return kind


def _until_end(events: Sequence[ExecutionEvent]) -> Sequence[ExecutionEvent]:
    """The events up to that of a terminal phase, which is the last one of a log."""
    for number, event in enumerate(events):
        if event.WhichOneof("event") == "phase_changed" and is_terminal(event.phase_changed.phase):
            return events[: number + 1]
    return events
