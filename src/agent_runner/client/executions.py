"""Starting, watching and stopping executions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio

from agent_runner.client.channels import Channel
from agent_runner.client.errors import DeadlineError, ServerUnreachableError, code_of, from_rpc
from agent_runner.client.kinds import API_VERSION, canonical_id
from agent_runner.errors import AgentRunnerError
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.execution_service_pb2 import (
    CancelExecutionRequest,
    CancelExecutionResponse,
    GetToolResultRequest,
    GetToolResultResponse,
    PauseExecutionRequest,
    PauseExecutionResponse,
    ResumeExecutionRequest,
    ResumeExecutionResponse,
    TerminateExecutionRequest,
    TerminateExecutionResponse,
    WatchExecutionRequest,
    WatchExecutionResponse,
)
from agent_runner.v1.options_pb2 import BusyPolicy
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_COMPLETED,
    EXECUTION_FAILED,
    EXECUTION_IN_PROGRESS,
    EXECUTION_PENDING,
)
from ai.stigmer.agentic.agentexecution.v1.io_pb2 import (
    AgentExecutionId,
    AgentExecutionList,
    ListAgentExecutionsRequest,
)

TERMINAL_PHASES = frozenset({EXECUTION_COMPLETED, EXECUTION_FAILED, EXECUTION_CANCELLED})
HEARTBEAT = timedelta(seconds=15)
SILENCE = 3 * HEARTBEAT
"""A stream silent for so long is dead: the server beats every 15 s."""
PATIENCE = timedelta(minutes=5)

_QUERY = "/ai.stigmer.agentic.agentexecution.v1.AgentExecutionQueryController"
_COMMAND = "/ai.stigmer.agentic.agentexecution.v1.AgentExecutionCommandController"
_OURS = "/agent_runner.v1.ExecutionService"
# What a watcher goes on after: the server went away, restarted, or cut us off because we were slow.
_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    }
)
# A broken connection may show as these too, but so does a failure that comes again each time.
_DOUBTFUL = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})
_DOUBTFUL_TRIES = 5


class Executions:
    """Executions of one server."""

    def __init__(self, channel: Channel, org: str) -> None:
        self._channel = channel
        self._org = org

    async def start(
        self,
        message: str,
        *,
        agent_id: str = "",
        session_id: str = "",
        model: str = "",
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        if_busy: str = "",
    ) -> AgentExecution:
        """Send a message to an agent, or into a session; returns at once, the phase is PENDING.

        Args:
            agent_id: starts a new session of the agent.
            session_id: goes on with one.
            env, secrets: variables for this execution alone; secrets are masked wherever they show.
            if_busy: what to do when another message of the session is being worked on: `queue` (the
                default), `reject`, `interrupt` or `steer`.

        Raises:
            InvalidRequestError: an empty message, or neither agent nor session.
            NotFoundError: no such agent or session.
        """
        execution = AgentExecution(api_version=API_VERSION, kind="AgentExecution")
        execution.metadata.name = f"execution-{time.time_ns() // 1000}"
        execution.metadata.org = self._org
        execution.spec.message = message
        execution.spec.agent_id = canonical_id(agent_id)
        execution.spec.session_id = canonical_id(session_id)
        if model:
            execution.spec.execution_config.model_name = model
        if if_busy:
            policy = BusyPolicy.Value(f"BUSY_POLICY_{if_busy.upper()}")
            execution.spec.execution_config.options.if_busy = policy
        for values, is_secret in ((env, False), (secrets, True)):
            for name, value in (values or {}).items():
                execution.spec.runtime_env[name].value = value
                execution.spec.runtime_env[name].is_secret = is_secret
        return await self._channel.unary(f"{_COMMAND}/create", execution, AgentExecution)

    async def get(self, execution_id: str) -> AgentExecution:
        """The execution as it is now.

        Raises:
            NotFoundError: there is none.
        """
        request = AgentExecutionId(value=canonical_id(execution_id))
        return await self._channel.unary(f"{_QUERY}/get", request, AgentExecution)

    async def cancel(self, execution_id: str, reason: str = "") -> AgentExecution:
        """Ask it to stop; returns at once.

        Raises:
            FailedPreconditionError: it has ended already.
        """
        request = CancelExecutionRequest(execution_id=canonical_id(execution_id), reason=reason)
        answer = await self._channel.unary(f"{_OURS}/CancelExecution", request, CancelExecutionResponse)
        return answer.execution

    async def terminate(self, execution_id: str, reason: str = "") -> AgentExecution:
        """End it without asking its runner; it is CANCELLED when this returns.

        Raises:
            FailedPreconditionError: it has ended already.
        """
        request = TerminateExecutionRequest(execution_id=canonical_id(execution_id), reason=reason)
        answer = await self._channel.unary(f"{_OURS}/TerminateExecution", request, TerminateExecutionResponse)
        return answer.execution

    async def pause(self, execution_id: str, reason: str = "") -> AgentExecution:
        """Ask it to stop after its super-step and to hold no worker until it is resumed; returns at once.

        Raises:
            FailedPreconditionError: it has ended already.
        """
        request = PauseExecutionRequest(execution_id=canonical_id(execution_id), reason=reason)
        answer = await self._channel.unary(f"{_OURS}/PauseExecution", request, PauseExecutionResponse)
        return answer.execution

    async def resume(self, execution_id: str) -> AgentExecution:
        """Let a paused execution go on; nothing happens when it is not paused.

        Raises:
            FailedPreconditionError: it has ended already.
        """
        request = ResumeExecutionRequest(execution_id=canonical_id(execution_id))
        answer = await self._channel.unary(f"{_OURS}/ResumeExecution", request, ResumeExecutionResponse)
        return answer.execution

    async def tool_result(self, execution_id: str, tool_call_id: str) -> AsyncGenerator[bytes, None]:
        """Stream what a tool gave, as UTF-8; it is whole when the iterator ends without an error.

        Raises:
            NotFoundError: no such execution or call, or the result is not kept any more.
            FailedPreconditionError: the call has not ended.
            UnavailableError: the server, or where it keeps results, is away.
        """
        request = GetToolResultRequest(execution_id=canonical_id(execution_id), tool_call_id=tool_call_id)
        method = f"{_OURS}/GetToolResult"
        try:
            async for answer in self._channel.stream(method, request, GetToolResultResponse, silence=SILENCE):
                yield answer.chunk
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self._channel.address) from error
        except TimeoutError as error:
            raise DeadlineError(self._channel.address) from error

    async def any_unfinished(self) -> bool:
        """Whether an execution of any organization waits or runs."""
        for phase in (EXECUTION_IN_PROGRESS, EXECUTION_PENDING):
            request = ListAgentExecutionsRequest(phase=phase, page_size=50)
            found = await self._channel.unary(f"{_QUERY}/list", request, AgentExecutionList)
            # The index may be a moment behind the statuses.
            if any(entry.status.phase not in TERMINAL_PHASES for entry in found.entries):
                return True
        return False

    async def watch(
        self,
        execution_id: str,
        *,
        after_seq: int = 0,
        patience: timedelta = PATIENCE,
        on_reconnect: Callable[[Exception | None], None] | None = None,
    ) -> AsyncIterator[ExecutionEvent]:
        """Events in order, each once, until a terminal phase; a lost connection is made anew.

        Args:
            after_seq: begin after this one; 0 for the first.
            patience: how long the server may be away before it is given up.
            on_reconnect: called with the reason when the connection is lost, with None when it is back.

        Raises:
            NotFoundError: no such execution.
            ServerUnreachableError: the server was away for longer than `patience`.
        """
        watcher = _Watcher(self, canonical_id(execution_id), after_seq, patience, on_reconnect)
        async for event in watcher.events():
            yield event

    async def _read(self, execution_id: str, after_seq: int) -> AsyncIterator[WatchExecutionResponse]:
        request = WatchExecutionRequest(execution_id=execution_id, after_seq=after_seq)
        async for answer in self._channel.stream(
            f"{_OURS}/WatchExecution", request, WatchExecutionResponse, silence=SILENCE
        ):
            yield answer


class _Watcher:
    """One watch over as many connections as it takes."""

    def __init__(
        self,
        executions: Executions,
        execution_id: str,
        after_seq: int,
        patience: timedelta,
        on_reconnect: Callable[[Exception | None], None] | None,
    ) -> None:
        self._executions = executions
        self._id = execution_id
        self._last = after_seq
        self._patience = patience.total_seconds()
        self._tell = on_reconnect or (lambda reason: None)
        self._lost_at: float | None = None
        self._tries = 0

    async def events(self) -> AsyncIterator[ExecutionEvent]:
        while True:
            try:
                async for answer in self._executions._read(self._id, self._last):
                    self._back()
                    for event in answer.events:
                        if event.seq <= self._last:
                            continue
                        self._last = event.seq
                        yield event
                        if event.phase_changed.phase in TERMINAL_PHASES:
                            return
                if await self._over():
                    return
                await self._pause(None)
            except grpc.aio.AioRpcError as error:
                if not self._passes(error.code()):
                    raise self._translate(error) from error
                await self._pause(error)
            except TimeoutError as error:
                await self._pause(error)

    def _passes(self, code: grpc.StatusCode) -> bool:
        return code in _PASSING or (code in _DOUBTFUL and self._tries < _DOUBTFUL_TRIES)

    async def _over(self) -> bool:
        """Whether a stream that ended by itself had nothing left to send."""
        try:
            status = (await self._executions.get(self._id)).status
        except AgentRunnerError as error:
            # As on the stream: a server that goes ends this call in the ways a broken connection does.
            if not self._passes(grpc.StatusCode[code_of(error)]):
                raise
            return False
        return status.phase in TERMINAL_PHASES and status.run.last_seq <= self._last

    async def _pause(self, reason: Exception | None) -> None:
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
            if reason is not None:
                self._tell(reason)
        elif now - self._lost_at > self._patience:
            if isinstance(reason, grpc.aio.AioRpcError):
                raise self._translate(reason) from reason
            raise ServerUnreachableError(self._executions._channel.address) from reason
        await asyncio.sleep(min(0.05 * 2 ** min(self._tries, 6), 2.0))
        self._tries += 1

    def _back(self) -> None:
        if self._lost_at is not None:
            self._lost_at, self._tries = None, 0
            self._tell(None)

    def _translate(self, error: grpc.aio.AioRpcError) -> Exception:
        return from_rpc(error, self._executions._channel.address)


def phase_name(phase: Any) -> str:
    """`IN_PROGRESS` for EXECUTION_IN_PROGRESS."""
    from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import ExecutionPhase

    try:
        return ExecutionPhase.Name(phase).removeprefix("EXECUTION_").removeprefix("PHASE_")
    except ValueError:
        return str(int(phase))
