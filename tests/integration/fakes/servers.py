"""Small gRPC servers for tests of the runner: ours over real services, and one of the Stigmer API alone."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from agent_runner import errors
from agent_runner.adapters.announcers.memory import MemoryAnnouncer
from agent_runner.adapters.artifacts.objects import ObjectArtifactStore
from agent_runner.adapters.store.memory import MemoryEventLog, MemoryResourceStore
from agent_runner.domain.attempts import LIMITS, AttemptLimits
from agent_runner.domain.status import merge_status
from agent_runner.ports.workflows import WorkflowStarter
from agent_runner.services.container import Services, build_services
from agent_runner.v1.runner_service_pb2 import (
    AppendEventsRequest,
    AppendEventsResponse,
    StartAttemptRequest,
    StartAttemptResponse,
)
from agent_runner.v1.server_service_pb2 import GetServerInfoRequest, GetServerInfoResponse
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agent.v1.io_pb2 import AgentId
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.command_pb2 import AgentExecutionUpdateStatusInput
from ai.stigmer.agentic.agentexecution.v1.io_pb2 import AgentExecutionId
from ai.stigmer.agentic.agentinstance.v1.api_pb2 import AgentInstance
from ai.stigmer.agentic.agentinstance.v1.io_pb2 import AgentInstanceId
from ai.stigmer.agentic.environment.v1.api_pb2 import Environment
from ai.stigmer.agentic.session.v1.api_pb2 import Session
from ai.stigmer.agentic.session.v1.io_pb2 import SessionId
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference

_CODES = {
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.FencedError: grpc.StatusCode.ABORTED,
    errors.ConflictError: grpc.StatusCode.ABORTED,
    errors.PositionError: grpc.StatusCode.OUT_OF_RANGE,
    errors.FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
}
Handler = Callable[[Any], Any]


class TestServer:
    """Answers each method with a plain function; `faults` may hold one that runs before all of them."""

    __test__ = False

    def __init__(self) -> None:
        self._server: grpc.aio.Server | None = None
        self._handlers: dict[str, dict[str, grpc.RpcMethodHandler]] = {}
        self.port = 0
        self.before: Callable[[str], Awaitable[None]] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(self, service: str, method: str, request: type[Any], handle: Handler) -> None:
        async def answer(message: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                if self.before is not None:
                    await self.before(method)
                result = handle(message)
                return await result if inspect.isawaitable(result) else result
            except errors.AgentRunnerError as error:
                code = next(code for kind, code in _CODES.items() if isinstance(error, kind))
                await context.abort(code, str(error))

        self._handlers.setdefault(service, {})[method] = grpc.unary_unary_rpc_method_handler(
            answer,  # type: ignore[arg-type]
            request_deserializer=request.FromString,
            response_serializer=lambda reply: reply.SerializeToString(),
        )

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        for service, methods in self._handlers.items():
            self._server.add_generic_rpc_handlers(
                [grpc.method_handlers_generic_handler(service, methods)]  # type: ignore[list-item]
            )
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None


class NativeServer(TestServer):
    """What a runner needs of our control plane, over the real services on stores in memory."""

    def __init__(self, workflows: WorkflowStarter, limits: AttemptLimits = LIMITS) -> None:
        super().__init__()
        self.appends: list[AppendEventsRequest] = []
        self.leaves_after = ""
        """Once the words of agents have this in them, nobody is answered until the next `start`."""
        self._words = ""
        self.services: Services = build_services(
            MemoryResourceStore(),
            MemoryEventLog(),
            MemoryAnnouncer(),
            workflows,
            ObjectArtifactStore.from_url("memory:///"),
            attempt_limits=limits,
        )
        services = self.services
        self.add(
            "agent_runner.v1.ServerService",
            "GetServerInfo",
            GetServerInfoRequest,
            lambda _: GetServerInfoResponse(),
        )
        runner = "agent_runner.v1.RunnerService"
        self.add(runner, "StartAttempt", StartAttemptRequest, self._start_attempt)
        self.add(runner, "AppendEvents", AppendEventsRequest, self._append)
        _add_queries(
            self,
            execution=lambda m: services.executions.get(m.value),
            session=lambda m: services.sessions.get(m.value),
            instance=lambda m: services.agent_instances.get(m.value),
            agent=lambda m: services.agents.get(m.value),
            environment=services.environments.get_by_reference,
        )

        self.add(
            "ai.stigmer.agentic.session.v1.SessionCommandController",
            "update",
            Session,
            services.sessions.update,
        )

    async def _start_attempt(self, request: StartAttemptRequest) -> StartAttemptResponse:
        return await self.services.events.start_attempt(request)

    async def _append(self, request: AppendEventsRequest) -> AppendEventsResponse:
        self.appends.append(request)
        answer = await self.services.events.append(request)
        self._words += "".join(event.message_delta.text for event in request.events)
        if self.leaves_after and self.leaves_after in self._words:
            self.before = _away
        return answer

    async def start(self) -> None:
        if self.before is _away:
            self.before, self.leaves_after = None, ""
        await super().start()


async def _away(_: str) -> None:
    raise errors.UnavailableError("It is away.")


class StigmerServer(TestServer):
    """A server that knows the Stigmer API alone: no attempts, no events, cumulative updates."""

    def __init__(self, execution: AgentExecution, session: Session, agent: Agent) -> None:
        super().__init__()
        self.execution = execution
        self.updates: list[AgentExecutionStatus] = []
        instance = AgentInstance()
        instance.metadata.id = session.spec.agent_instance_id
        instance.spec.agent_id = agent.metadata.id
        self.add(
            "ai.stigmer.agentic.agentexecution.v1.AgentExecutionCommandController",
            "updateStatus",
            AgentExecutionUpdateStatusInput,
            self._update,
        )
        _add_queries(
            self,
            execution=lambda _: self.execution,
            session=lambda _: session,
            instance=lambda _: instance,
            agent=lambda _: agent,
            environment=_no_environment,
        )

    def _update(self, request: AgentExecutionUpdateStatusInput) -> AgentExecution:
        status = AgentExecutionStatus()
        status.CopyFrom(request.status)
        self.updates.append(status)
        merge_status(self.execution.status, request.status)
        return self.execution


def _no_environment(_: object) -> Environment:
    raise errors.NotFoundError("environment", "any")


def _add_queries(server: TestServer, **handlers: Handler) -> None:
    package = "ai.stigmer.agentic"
    for name, service, method, request in (
        ("execution", "agentexecution.v1.AgentExecutionQueryController", "get", AgentExecutionId),
        ("session", "session.v1.SessionQueryController", "get", SessionId),
        ("instance", "agentinstance.v1.AgentInstanceQueryController", "get", AgentInstanceId),
        ("agent", "agent.v1.AgentQueryController", "get", AgentId),
        ("environment", "environment.v1.EnvironmentQueryController", "getByReference", ApiResourceReference),
    ):
        server.add(f"{package}.{service}", method, request, handlers[name])
