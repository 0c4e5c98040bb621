"""Reporting to a server that knows the Stigmer API alone: the whole status, every so many events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NoReturn

import structlog

from agent_runner.adapters.status.times import now
from agent_runner.client.channels import Channel
from agent_runner.domain.status import StatusFold, is_terminal
from agent_runner.domain.wire import without_own_fields
from agent_runner.errors import AgentRunnerError, FailedPreconditionError, NotFoundError
from agent_runner.ports.agents import RecordedCall, SteeringMessage
from agent_runner.ports.status_sinks import AttemptOf, Grant
from agent_runner.v1.events_pb2 import ExecutionEvent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.command_pb2 import AgentExecutionUpdateStatusInput
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    TOOL_CALL_COMPLETED,
    TOOL_CALL_FAILED,
)
from ai.stigmer.agentic.agentexecution.v1.io_pb2 import AgentExecutionId

log = structlog.get_logger(__name__)

_PACKAGE = "/ai.stigmer.agentic.agentexecution.v1"
_GET = f"{_PACKAGE}.AgentExecutionQueryController/get"
_UPDATE = f"{_PACKAGE}.AgentExecutionCommandController/updateStatus"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_CALL = timedelta(seconds=10)


class StigmerSinks:
    """Takes executions over from `AgentExecutionCommandController`, which knows no attempts.

    Nothing fences an older attempt off there, and nothing of a tool call is durable before it runs:
    Stigmer's own workflow makes one attempt.
    """

    def __init__(self, channel: Channel, events: int = 10) -> None:
        self._channel = channel
        self._events = events

    async def open(self, attempt: AttemptOf) -> tuple[StigmerSink, Grant]:
        name = AgentExecutionId(value=attempt.execution_id)
        execution = await self._channel.unary(_GET, name, AgentExecution, timeout=_CALL)
        if is_terminal(execution.status.phase):
            raise FailedPreconditionError(f"Execution {attempt.execution_id!r} has ended already.")
        grant = Grant(max(1, attempt.activity_attempt), execution, _recorded(execution.status))
        sink = StigmerSink(self._channel, self._events, attempt.execution_id, grant)
        return sink, grant

    async def deliver_left(self) -> NoReturn:
        await asyncio.Event().wait()  # an attempt that is gone is not asked for what it had to say
        raise AssertionError("nobody sets it")


def _recorded(status: AgentExecutionStatus) -> dict[str, RecordedCall]:
    """Calls an earlier attempt has reported; of those it did not, nothing is known."""
    finished = (TOOL_CALL_COMPLETED, TOOL_CALL_FAILED)
    return {
        call.id: RecordedCall(
            call.status in finished, call.status == TOOL_CALL_FAILED, call.result or call.error
        )
        for call in status.tool_calls
    }


class StigmerSink:
    """Sends the status after every `events` events and at phases, while nobody waits for it.

    A failed update is skipped, the next one holds it too; only `flush` insists.
    """

    def __init__(self, channel: Channel, events: int, execution_id: str, grant: Grant) -> None:
        self._channel = channel
        self._every = events
        self._execution_id = execution_id
        self._calls: Mapping[str, RecordedCall] = grant.calls
        status = AgentExecutionStatus()
        status.CopyFrom(grant.execution.status)
        self._fold = StatusFold(status)
        self._emitted = self._sent = 0
        self._refused = False
        self._gone: AgentRunnerError | None = None
        self._stop = asyncio.Event()
        self._due = asyncio.Event()
        self._sending = asyncio.Lock()
        self._sender = asyncio.create_task(self._send_when_due(), name=f"report {execution_id}")

    @property
    def status(self) -> AgentExecutionStatus:
        return self._fold.status

    @property
    def cancel_requested(self) -> bool:
        return False

    @property
    def pause_requested(self) -> bool:
        return False

    async def wait_pause(self) -> None:
        await asyncio.Event().wait()  # nobody can ask there

    def steering(self) -> Sequence[SteeringMessage]:
        return ()

    def recorded(self, tool_call_id: str) -> RecordedCall | None:
        return self._calls.get(tool_call_id)

    def emit(self, event: ExecutionEvent) -> None:
        if not event.time:
            event.time = now()
        self._fold.apply(event)
        self._emitted += 1
        if self._emitted % self._every == 0 or event.HasField("phase_changed"):
            self._due.set()

    async def begin(self, event: ExecutionEvent) -> None:
        self.emit(event)

    async def finish(self, event: ExecutionEvent) -> None:
        self.emit(event)

    async def flush(self) -> None:
        pause, wanted = _FIRST_PAUSE, self._emitted
        while self._sent < wanted:
            if self._gone is not None:
                raise self._gone
            if not await self._send():
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def wait_stop(self) -> None:
        await self._stop.wait()
        assert self._gone is not None
        raise self._gone

    async def aclose(self) -> None:
        self._sender.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sender

    async def _send_when_due(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            await self._send()

    async def _send(self) -> bool:
        """Send the status as it is now; whether the server took it."""
        async with self._sending:
            included = self._emitted
            update = AgentExecutionUpdateStatusInput(
                execution_id=self._execution_id, status=without_own_fields(self._fold.status)
            )
            try:
                await self._channel.unary(_UPDATE, update, AgentExecution, timeout=_CALL)
            except NotFoundError as error:
                self._gone = error
                self._stop.set()
                return False
            except AgentRunnerError as error:
                # Once per outage is enough for people.
                tell = log.debug if self._refused else log.warning
                tell("status not taken", execution_id=self._execution_id, reason=str(error))
                self._refused = True
                return False
            self._refused = False
            self._sent = max(self._sent, included)
            return True
