"""A small gRPC server in the test's own loop: resources in a dict, a log to watch, faults on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2, error_details_pb2, status_pb2

from agent_runner.client.executions import TERMINAL_PHASES
from agent_runner.client.kinds import KINDS, Kind, canonical_id
from agent_runner.domain.status import apply
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.execution_service_pb2 import (
    CancelExecutionRequest,
    CancelExecutionResponse,
    PauseExecutionRequest,
    PauseExecutionResponse,
    ResumeExecutionRequest,
    ResumeExecutionResponse,
    TerminateExecutionRequest,
    TerminateExecutionResponse,
    WatchExecutionRequest,
    WatchExecutionResponse,
)
from agent_runner.v1.resource_service_pb2 import ListResourcesRequest, ListResourcesResponse
from agent_runner.v1.server_service_pb2 import GetServerInfoRequest, GetServerInfoResponse
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED, EXECUTION_PENDING

_STEPS: dict[str, tuple[type[Message], type[Any]]] = {
    "TerminateExecution": (TerminateExecutionRequest, TerminateExecutionResponse),
    "PauseExecution": (PauseExecutionRequest, PauseExecutionResponse),
    "ResumeExecution": (ResumeExecutionRequest, ResumeExecutionResponse),
}
ULID = "01jzzzzzzzzzzzzzzzzzzz"


@dataclass
class Cut:
    """End a watch after so many events with a code, or with None by closing it without an error."""

    after: int
    code: grpc.StatusCode | None


@dataclass
class SmallServer:
    """Serves every kind, and one log for all executions."""

    key: str | None = None
    events: list[ExecutionEvent] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    overlap: int = 0
    """How many events before `after_seq` are sent again, as a server that counts loosely would."""
    watches: list[int] = field(default_factory=list)
    refuse: Callable[[str], tuple[grpc.StatusCode, str] | None] = lambda method: None
    violations: Sequence[tuple[str, str]] = ()
    stored: dict[str, dict[str, Message]] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    steps: list[tuple[str, str]] = field(default_factory=list)
    """Terminate, pause and resume, as they were asked for."""
    live: bool = False
    """Whether a watch stays open until a terminal phase is added; else it ends with the log."""
    more: asyncio.Event = field(default_factory=asyncio.Event)
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared: calls are taken and not answered."""
    address: str = ""
    loop: asyncio.AbstractEventLoop | None = None
    """The loop it runs in, when that is another thread's."""
    _server: grpc.aio.Server | None = None
    _count: int = 0

    async def start(self, port: int = 0) -> None:
        self.answers.set()
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        self._server.add_generic_rpc_handlers((_Handler(self),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        await self._server.start()

    async def stop(self) -> None:
        assert self._server is not None
        await self._server.stop(None)

    async def handle(self, method: str, request: Message, context: Any) -> Message:
        self.calls.append(method)
        await self.answers.wait()
        await self._check(method, context)
        service, name = method.strip("/").split("/")
        if name == "ListResources":
            return self._list(request)
        if name == "CancelExecution":
            return await self._cancel(request, context)
        if name in _STEPS:
            return await self._step(name, request, context)
        if name == "GetServerInfo":
            return GetServerInfoResponse(version="9.9.9", temporal_address="t:7233", temporal_reachable=True)
        kind = next(k for k in KINDS if service.startswith(k.package + "."))
        return await self._resource(kind, name, request, context)

    async def _check(self, method: str, context: Any) -> None:
        if self.key is not None:
            sent = dict(context.invocation_metadata()).get("authorization")
            if sent != f"Bearer {self.key}":
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "This server wants a key.")
        if refused := self.refuse(method):
            await context.abort(*refused)
        if self.violations and ("/apply" in method or "/create" in method):
            await _abort_with_violations(context, self.violations)

    async def _resource(self, kind: Kind, name: str, request: Any, context: Any) -> Message:
        table = self.stored.setdefault(kind.name, {})
        if name in ("apply", "create"):
            return self._put(kind, table, request)
        if name == "getByReference":
            found = next((r for r in table.values() if r.metadata.slug == request.slug), None)  # type: ignore[attr-defined]
        else:
            wanted = getattr(request, "value", "") or getattr(request, "resource_id", "")
            found = table.pop(wanted, None) if name == "delete" else table.get(wanted)
        if found is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{kind.word} was not found.")
        return found

    def _put(self, kind: Kind, table: dict[str, Message], resource: Any) -> Message:
        metadata = resource.metadata
        metadata.slug = metadata.slug or metadata.name
        known = next((r for r in table.values() if r.metadata.slug == metadata.slug), None)  # type: ignore[attr-defined]
        if known is not None and kind.name != "AgentExecution":
            metadata.id = known.metadata.id  # type: ignore[attr-defined]
        else:
            self._count += 1
            metadata.id = f"{kind.id_prefix}-{ULID}{self._count:04d}"
        if kind.name == "AgentExecution":
            resource.status.phase = (
                EXECUTION_COMPLETED if self.events and not self.live else EXECUTION_PENDING
            )
            resource.status.run.last_seq = self.events[-1].seq if self.events else 0
            resource.spec.session_id = resource.spec.session_id or f"ses-{ULID}0000"
        table[metadata.id] = resource
        return resource

    def _list(self, request: Any) -> Message:
        kind = next(k for k in KINDS if k.number == request.kind)
        found = sorted(self.stored.get(kind.name, {}).values(), key=lambda r: r.metadata.id, reverse=True)  # type: ignore[attr-defined]
        start = int(request.page_token or 0)
        page = found[start : start + request.page_size]
        answer = ListResourcesResponse()
        for resource in page:
            answer.items.add().Pack(resource)
        if start + len(page) < len(found):
            answer.next_page_token = str(start + len(page))
        return answer

    async def _cancel(self, request: Any, context: Any) -> Message:
        execution = self.stored.get("AgentExecution", {}).get(request.execution_id)
        if execution is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such execution.")
        self.cancelled.append(request.execution_id)
        return CancelExecutionResponse(execution=execution)

    async def _step(self, name: str, request: Any, context: Any) -> Message:
        answer = await self._cancel(request, context)
        self.cancelled.pop()
        self.steps.append((name, request.execution_id))
        return _STEPS[name][1](execution=answer.execution)

    async def watch(self, request: Any, context: Any) -> AsyncIterator[WatchExecutionResponse]:
        self.watches.append(request.after_seq)
        await self._check("WatchExecution", context)
        if canonical_id(request.execution_id) not in self.stored.get("AgentExecution", {}):
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such execution.")
        cut = self.cuts.pop(0) if self.cuts else None
        sent = read = 0
        while True:
            for event in self.events[read:]:
                read += 1
                if event.seq <= request.after_seq - self.overlap:
                    continue
                if cut is not None and sent == cut.after:
                    if cut.code is None:
                        return
                    await context.abort(cut.code, "cut off")
                yield WatchExecutionResponse(events=[event])
                sent += 1
            yield WatchExecutionResponse()  # a heartbeat
            if self.events and (not self.live or self.events[-1].phase_changed.phase in TERMINAL_PHASES):
                return
            self.more.clear()
            await self.more.wait()

    def add_from_outside(self, *events: ExecutionEvent) -> None:
        """`add`, from a thread without the server's loop."""
        assert self.loop is not None
        for event in events:
            self.loop.call_soon_threadsafe(self.add, event)

    def add(self, event: ExecutionEvent) -> None:
        """Append an event that watchers of a live log get now; a terminal phase ends the executions."""
        event.seq = len(self.events) + 1
        self.events.append(event)
        for execution in self.stored.get("AgentExecution", {}).values():
            apply(execution.status, event)  # type: ignore[attr-defined]
        self.more.set()


async def _abort_with_violations(context: Any, violations: Sequence[tuple[str, str]]) -> None:
    from grpc_status import rpc_status

    bad = error_details_pb2.BadRequest()
    for path, problem in violations:
        bad.field_violations.add(field=path, description=problem, reason="test")
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="not valid")
    status.details.add().Pack(bad)
    await context.abort_with_status(rpc_status.to_status(status))


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, server: SmallServer) -> None:
        self._server = server

    def service(self, details: Any) -> Any:
        method = details.method
        if method.endswith("/WatchExecution"):
            return grpc.unary_stream_rpc_method_handler(
                self._server.watch, WatchExecutionRequest.FromString, WatchExecutionResponse.SerializeToString
            )
        request = _request_type(method)
        if request is None:
            return None

        async def handle(message: Message, context: Any) -> Message:
            return await self._server.handle(method, message, context)

        return grpc.unary_unary_rpc_method_handler(
            handle, request.FromString, lambda answer: answer.SerializeToString()
        )


def _request_type(method: str) -> Any:
    ours = {
        **{name: request for name, (request, _response) in _STEPS.items()},
        "ListResources": ListResourcesRequest,
        "CancelExecution": CancelExecutionRequest,
        "GetServerInfo": GetServerInfoRequest,
    }
    service, name = method.strip("/").split("/")
    if name in ours:
        return ours[name]
    for kind in KINDS:
        if service.startswith(kind.package + "."):
            found = kind.command(name) or kind.query(name)
            return GetMessageClass(found.input_type) if found else None
    return None


def log_of(count: int, phase: Any = EXECUTION_COMPLETED) -> list[ExecutionEvent]:
    """`count` events: text, then the terminal phase."""
    events = [ExecutionEvent(seq=seq, time="2026-01-02T03:04:05Z") for seq in range(1, count + 1)]
    for event in events[:-1]:
        event.message_delta.text = str(event.seq)
    events[-1].phase_changed.phase = phase
    return events
