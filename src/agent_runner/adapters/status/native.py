"""Reporting to our own control plane: events, in order, each stored once."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog

from agent_runner.adapters.status.outbox import Outbox
from agent_runner.adapters.status.times import now
from agent_runner.client.channels import Channel
from agent_runner.client.errors import RemoteError
from agent_runner.domain.status import StatusFold, fold
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
_APPEND = "/agent_runner.v1.RunnerService/AppendEvents"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_SERVER_FAULT_PATIENCE = timedelta(minutes=5)
_CALL = timedelta(seconds=20)
_SOON = 0.01
"""Seconds a boundary waits nobody waits for: what a message asks for, and that it was done, go together."""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """When a batch leaves.

    Attributes:
        events: after this many, text that is joined to text counting once, or
        interval: this long after the batch before; at once when that is longer ago already, where a
            phase changes and where somebody waits for it, and 10 ms after another boundary.
    """

    events: int = 10
    interval: timedelta = timedelta(milliseconds=100)


class NativeSinks:
    """Takes executions over from `agent_runner.v1.RunnerService`."""

    def __init__(self, channel: Channel, settings: BatchSettings | None = None) -> None:
        self._channel = channel
        self._settings = settings or BatchSettings()

    async def open(self, attempt: AttemptOf) -> tuple[NativeSink, Grant]:
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
        return NativeSink(self._channel, self._settings, attempt.execution_id, grant), grant


def _recorded(answer: StartAttemptResponse) -> dict[str, RecordedCall]:
    return {
        call.tool_call_id: RecordedCall(call.finished, call.failed, call.result) for call in answer.tool_calls
    }


class NativeSink:
    """One attempt's events. A task of its own sends them; whoever emits never waits for the network.

    A batch is sent again until it is answered; the server skips what it has by position.
    """

    def __init__(self, channel: Channel, settings: BatchSettings, execution_id: str, grant: Grant) -> None:
        self._channel = channel
        self._settings = settings
        self._execution_id = execution_id
        self._attempt = grant.attempt
        self._calls: Mapping[str, RecordedCall] = grant.calls
        self._outbox = Outbox()
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
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._last_sent = self._loop.time() - settings.interval.total_seconds()
        self._sender = asyncio.create_task(self._send_all(), name=f"report {execution_id}")

    @property
    def status(self) -> AgentExecutionStatus:
        if not self._outbox:
            return self._fold.status
        return fold(self._fold.status, self._outbox.peek())

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
        self._put(event)
        await self.flush()

    async def finish(self, event: ExecutionEvent) -> None:
        self._put(event)
        await self.flush()

    async def flush(self) -> None:
        if self._outbox:
            self._outbox.urgent = True
            self._due.set()
        await self._wait_stored(self._all)

    async def wait_stop(self) -> None:
        await self._stop.wait()
        if self._failure is not None:
            raise self._failure

    async def aclose(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._sender.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sender
        for _, waiter in self._waiters:
            waiter.cancel()

    _all = 0
    """How many events must be stored for everything put to be."""

    def _put(self, event: ExecutionEvent) -> int:
        if self._failure is not None:
            return self._all
        # The time of a piece of text is nothing anybody asks for, and would weigh more than the text: the
        # control plane fills in its own.
        if not event.time and event.WhichOneof("event") != "message_delta":
            event.time = now()
        self._all = self._outbox.put(event)
        self._schedule()
        return self._all

    def _schedule(self) -> None:
        """Wake the sender now, or set the timer that will."""
        if self._due.is_set() or not self._outbox:
            return
        interval = _SOON if self._outbox.soon else self._settings.interval.total_seconds()
        due = self._last_sent + interval
        if self._outbox.urgent or self._outbox.waiting >= self._settings.events or due <= self._loop.time():
            self._due.set()
        elif self._timer is None or self._timer.when() > due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._due.set()

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
                await self._due.wait()
                self._due.clear()
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
                if batch := self._outbox.take():
                    for event in batch:
                        self._fold.apply(event)
                    self._last_sent = self._loop.time()
                    await self._send(batch)
                    self._schedule()
        except AgentRunnerError as error:
            self._fail(error)
        except Exception as error:
            # Whoever waits must learn of it, or would wait for ever.
            log.exception("reporting failed", execution_id=self._execution_id)
            self._fail(AgentRunnerError(f"Reporting failed: {error!r}"))

    async def _send(self, batch: Sequence[ExecutionEvent]) -> None:
        """Send until all of it is stored."""
        pause, fault_since = _FIRST_PAUSE, None
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
            tell = log.warning if pause == _FIRST_PAUSE else log.debug
            tell("report not taken, trying again", execution_id=self._execution_id, reason=reason)
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 (spreads retries, no secret)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _append(self, batch: Sequence[ExecutionEvent], *, again: bool) -> AppendEventsResponse:
        request = AppendEventsRequest(
            execution_id=self._execution_id, attempt=self._attempt, position=self._stored, events=batch
        )
        try:
            return await self._channel.unary(
                _APPEND, request, AppendEventsResponse, timeout=_CALL, wait_for_server=again
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
        self._stored = answer.next_position
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
