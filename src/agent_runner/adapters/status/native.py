"""Reporting to our own control plane: events, in order, each stored once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from datetime import timedelta
from math import inf
from typing import NoReturn

import structlog

from agent_runner.adapters.status.batches import Batches, BatchSettings
from agent_runner.adapters.status.leftovers import APPEND, NOT_WANTED, Leftovers
from agent_runner.adapters.status.spools import Backlog, Spool
from agent_runner.adapters.status.times import now
from agent_runner.client.channels import Channel
from agent_runner.client.errors import RemoteError
from agent_runner.domain.status import StatusFold, fold, is_terminal
from agent_runner.errors import (
    AgentRunnerError,
    ConflictError,
    FencedError,
    PositionError,
    UnavailableError,
)
from agent_runner.ports.agents import RecordedCall, SteeringMessage
from agent_runner.ports.status_sinks import AttemptOf, Grant
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.runner_service_pb2 import (
    AppendEventsRequest,
    AppendEventsResponse,
    StartAttemptRequest,
    StartAttemptResponse,
)
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus

log = structlog.get_logger(__name__)

_START = "/agent_runner.v1.RunnerService/StartAttempt"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_SERVER_FAULT_PATIENCE = timedelta(minutes=5)
_CALL = timedelta(seconds=20)
_PATIENCE = 1.0
"""Seconds the control plane may be away before what waits for it is kept on disk."""
_SILENCE = 5.0
"""The same where calls do not fail, but are not answered: it may just be slow."""
_FULL_PAUSE = 1.0
"""Seconds between looks for room on the disk."""


class NativeSinks:
    """Takes executions over from `agent_runner.v1.RunnerService`."""

    def __init__(
        self, channel: Channel, settings: BatchSettings | None = None, spool: Spool | None = None
    ) -> None:
        """Without a spool what cannot be sent waits in memory alone."""
        self._channel = channel
        self._settings = settings or BatchSettings()
        self._spool = spool
        self._leftovers = Leftovers(channel, spool) if spool is not None else None

    async def deliver_left(self) -> NoReturn:
        if self._leftovers is not None:
            await self._leftovers.run()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def open(self, attempt: AttemptOf) -> tuple[NativeSink, Grant]:
        if self._leftovers is not None:
            # From here on the control plane refuses what earlier attempts have to say.
            await self._leftovers.deliver(attempt.execution_id)
        request = StartAttemptRequest(
            execution_id=attempt.execution_id,
            worker=attempt.worker,
            workflow_run_id=attempt.workflow_run_id,
            activity_attempt=attempt.activity_attempt,
            resumed=attempt.resumed,
        )
        try:
            answer = await self._channel.unary(_START, request, StartAttemptResponse, timeout=_CALL)
        except ConflictError as error:
            raise FencedError(attempt.execution_id, 0, attempt.activity_attempt) from error
        steering = [SteeringMessage(given.execution_id, given.text) for given in answer.steering]
        grant = Grant(answer.attempt, answer.execution, _recorded(answer), steering, answer.token)
        backlog = self._spool.backlog(attempt.execution_id, grant.attempt) if self._spool else None
        return NativeSink(self._channel, self._settings, attempt.execution_id, grant, backlog), grant


def _recorded(answer: StartAttemptResponse) -> dict[str, RecordedCall]:
    return {
        call.tool_call_id: RecordedCall(call.finished, call.failed, call.result) for call in answer.tool_calls
    }


class NativeSink:
    """One attempt's events. A task of its own sends them; whoever emits never waits for the network.

    A batch is sent again until it is answered; the server skips what it has by position. While it is
    not answered, what comes goes to the backlog on disk, and is sent from there when somebody answers.
    """

    def __init__(
        self,
        channel: Channel,
        settings: BatchSettings,
        execution_id: str,
        grant: Grant,
        backlog: Backlog | None = None,
    ) -> None:
        self._channel = channel
        self._execution_id = execution_id
        self._attempt = grant.attempt
        self._calls: Mapping[str, RecordedCall] = grant.calls
        self._batches = Batches(settings)
        self._backlog = backlog
        self._writing = asyncio.Lock()
        self._unsent: Sequence[ExecutionEvent] = ()
        """Left the outbox, are neither stored nor on disk; the newest `len` of `_taken`."""
        self._taken = 0
        self._keeping: asyncio.Task[None] | None = None
        """Puts what comes on the disk, during an outage."""
        self._watch: asyncio.TimerHandle | None = None
        self._answer_due = inf
        self._told = False
        """Whether people were told that nobody answers."""
        self._boundary = False
        """Whether a boundary is among the unsent."""
        self._not_begun: set[int] = set()
        """Positions of the tool calls that wait to be stored before they run."""
        status = AgentExecutionStatus()
        status.CopyFrom(grant.execution.status)
        self._fold = StatusFold(status)
        self._stored = 0
        self._failure: AgentRunnerError | None = None
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._stop = asyncio.Event()
        self._cancel_requested = False
        self._pause = asyncio.Event()
        self._steering = {message.execution_id: message for message in grant.steering}
        self._loop = asyncio.get_running_loop()
        self._sender = asyncio.create_task(self._send_all(), name=f"report {execution_id}")

    @property
    def status(self) -> AgentExecutionStatus:
        if not self._batches:
            return self._fold.status
        return fold(self._fold.status, self._batches.peek())

    @property
    def cancel_requested(self) -> bool:
        return self._cancel_requested

    @property
    def pause_requested(self) -> bool:
        return self._pause.is_set()

    async def wait_pause(self) -> None:
        await self._pause.wait()

    def steering(self) -> Sequence[SteeringMessage]:
        return list(self._steering.values())

    def recorded(self, tool_call_id: str) -> RecordedCall | None:
        return self._calls.get(tool_call_id)

    def emit(self, event: ExecutionEvent) -> None:
        self._put(event)

    async def begin(self, event: ExecutionEvent) -> None:
        self._not_begun.add(self._put(event) - 1)
        await self.flush()
        if self._cancel_requested:
            # Nothing begins any more. The turn is about to be cancelled; when the execution has ended,
            # the call was not even stored.
            await asyncio.Event().wait()

    async def finish(self, event: ExecutionEvent) -> None:
        self._put(event)
        await self.flush()

    async def flush(self) -> None:
        self._batches.hurry()
        await self._wait_stored(self._all)

    async def wait_stop(self) -> None:
        await self._stop.wait()
        if self._failure is not None:
            raise self._failure

    async def aclose(self) -> None:
        self._batches.close()
        if self._watch is not None:
            self._watch.cancel()
        self._sender.cancel()
        await asyncio.wait({self._sender})
        for _, waiter in self._waiters:
            waiter.cancel()
        if self._backlog is not None:
            await self._leave_to(self._backlog)

    _all = 0
    """How many events must be stored for everything put to be."""

    def _put(self, event: ExecutionEvent) -> int:
        if self._failure is not None:
            return self._all
        # The time of a piece of text is nothing anybody asks for, and would weigh more than the text: the
        # control plane fills in its own.
        if not event.time and event.WhichOneof("event") != "message_delta":
            event.time = now()
        self._all = self._batches.put(event)
        return self._all

    async def _wait_stored(self, count: int) -> None:
        if self._failure is not None:
            raise self._failure
        if self._stored >= count:
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append((count, waiter))
        await waiter

    async def _send_all(self) -> None:
        try:
            while True:
                await self._batches.due()
                self._take()
                while batch := await self._next():
                    await self._send(batch)
        except AgentRunnerError as error:
            self._fail(error)
        except Exception as error:
            # Whoever waits must learn of it, or would wait for ever.
            log.exception("reporting failed", execution_id=self._execution_id)
            self._fail(AgentRunnerError(f"Reporting failed: {error!r}"))
        finally:
            await self._stop_keeping()

    def _take(self) -> None:
        """Take the next batch from those that wait."""
        self._boundary, batch = self._batches.take()
        for event in batch:
            self._fold.apply(event)
        self._unsent = [*self._unsent, *batch] if self._unsent else batch
        self._taken += len(batch)

    async def _next(self) -> Sequence[ExecutionEvent]:
        """What is to be sent next, from the disk while something is there; an outage ends when nothing is."""
        if self._keeping is None or self._backlog is None:
            return self._unsent
        async with self._writing:
            if batch := await self._backlog.read(self._stored) or self._unsent:
                return batch
        await self._stop_keeping()
        await self._backlog.remove()
        return self._unsent

    def _wait_for_answer(self, patience: float) -> None:
        """Begin to keep on disk what comes unless an answer does within so many seconds."""
        self._answer_due = self._loop.time() + patience
        if self._watch is None or self._watch.when() > self._answer_due:
            if self._watch is not None:
                self._watch.cancel()
            self._watch = self._loop.call_at(self._answer_due, self._look_for_answer)

    def _look_for_answer(self) -> None:
        self._watch = None
        if self._backlog is None or self._keeping is not None or self._answer_due == inf:
            return
        if self._answer_due > self._loop.time():
            # One timer serves all batches of its time, rather than each batch setting one.
            self._watch = self._loop.call_at(self._answer_due, self._look_for_answer)
        else:
            self._keeping = asyncio.create_task(
                self._keep_all(self._backlog), name=f"keep {self._execution_id}"
            )

    async def _stop_keeping(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
            self._keeping = None

    async def _keep_all(self, backlog: Backlog) -> None:
        while True:
            async with self._writing:
                if not self._unsent:
                    self._take()
                kept = not self._unsent or await self._keep_unsent(backlog)
            if kept:
                await self._batches.due()
            else:
                # Text joins in the outbox meanwhile, which is how memory stays bounded.
                await asyncio.sleep(_FULL_PAUSE)

    async def _keep_unsent(self, backlog: Backlog) -> bool:
        first = self._taken - len(self._unsent)
        kept = await backlog.keep(first, self._unsent, not_begun=self._not_begun, sync=self._boundary)
        if kept:
            self._unsent = ()
        return kept

    async def _leave_to(self, backlog: Backlog) -> None:
        """Leave what could not be sent on disk, for the next attempt here, or whoever is next, to deliver."""
        if isinstance(self._failure, NOT_WANTED):
            if backlog.used:
                log.info("events kept on disk dropped", execution_id=self._execution_id)
            await backlog.remove()
            return
        # What comes after the end is nothing anybody asks for.
        while self._batches and not (self._stored == self._taken and is_terminal(self._fold.status.phase)):
            self._take()
        if self._stored < self._taken:
            first = self._taken - len(self._unsent)
            await backlog.leave(first, self._unsent, not_begun=self._not_begun)
        else:
            await backlog.remove()

    async def _send(self, batch: Sequence[ExecutionEvent]) -> None:
        """Send until all of it is stored."""
        pause, fault_since = _FIRST_PAUSE, None
        self._wait_for_answer(_SILENCE)
        while batch:
            try:
                # Again means as soon as somebody answers: a server back for a moment is not missed.
                batch = self._take_answer(batch, await self._append(batch, again=pause > _FIRST_PAUSE))
                continue
            except UnavailableError as error:
                fault_since, reason = None, str(error)
            except RemoteError as error:
                if error.code == "OUT_OF_RANGE":
                    raise PositionError(self._execution_id, self._stored, -1) from error
                fault_since, reason = fault_since or self._loop.time(), str(error)
                if self._loop.time() - fault_since > _SERVER_FAULT_PATIENCE.total_seconds():
                    raise
            # Once per outage is enough for people.
            tell = log.debug if self._told else log.warning
            tell("report not taken, trying again", execution_id=self._execution_id, reason=reason)
            self._told = True
            if pause == _FIRST_PAUSE:
                self._wait_for_answer(_PATIENCE)
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 (spreads retries, no secret)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _append(self, batch: Sequence[ExecutionEvent], *, again: bool) -> AppendEventsResponse:
        request = AppendEventsRequest(
            execution_id=self._execution_id, attempt=self._attempt, position=self._stored, events=batch
        )
        try:
            return await self._channel.unary(
                APPEND, request, AppendEventsResponse, timeout=_CALL, wait_for_server=again
            )
        except ConflictError as error:
            raise FencedError(self._execution_id, self._attempt, self._attempt + 1) from error

    def _take_answer(
        self, batch: Sequence[ExecutionEvent], answer: AppendEventsResponse
    ) -> Sequence[ExecutionEvent]:
        """Note what is stored; returns the rest of the batch."""
        stored = answer.next_position - self._stored
        if not 0 < stored <= len(batch):
            raise PositionError(self._execution_id, self._stored, answer.next_position)
        self._stored, self._told, self._answer_due = answer.next_position, False, inf
        waiting = self._taken - self._stored
        if waiting < len(self._unsent):
            self._unsent = self._unsent[len(self._unsent) - waiting :]
        if self._not_begun:
            self._not_begun = {position for position in self._not_begun if position >= self._stored}
        done = [waiter for count, waiter in self._waiters if count <= self._stored]
        self._waiters = [entry for entry in self._waiters if entry[0] > self._stored]
        for waiter in done:
            if not waiter.done():
                waiter.set_result(None)
        if answer.cancel_requested:
            self._cancel_requested = True
            self._stop.set()
        if answer.pause_requested:
            self._pause.set()
        else:
            self._pause.clear()
        for given in answer.steering:
            self._steering.setdefault(given.execution_id, SteeringMessage(given.execution_id, given.text))
        return batch[stored:]

    def _fail(self, error: AgentRunnerError) -> None:
        self._failure = error
        self._stop.set()
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self._waiters.clear()
