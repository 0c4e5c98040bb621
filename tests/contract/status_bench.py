"""Servers of both kinds with one execution, and the events of a small turn: for suites on reporting."""

from __future__ import annotations

from dataclasses import dataclass

from integration.fakes.servers import NativeServer, StigmerServer, TestServer

from agent_runner.adapters.status.sinks import NegotiatingSinks
from agent_runner.adapters.workflows.memory import MemoryWorkflowStarter
from agent_runner.client.channels import Channel
from agent_runner.ports.status_sinks import AttemptOf, StatusSinks
from agent_runner.v1.events_pb2 import (
    ExecutionEvent,
    MessageCompleted,
    MessageDelta,
    MessageStarted,
    PhaseChanged,
    ToolCallCompleted,
    ToolCallStarted,
)
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import MESSAGE_AI
from ai.stigmer.agentic.session.v1.api_pb2 import Session
from ai.stigmer.commons.apiresource.enum_pb2 import ApiResourceOwnerScope


@dataclass
class Backend:
    server: TestServer
    channel: Channel
    sinks: StatusSinks
    execution_id: str

    @property
    def native(self) -> NativeServer:
        assert isinstance(self.server, NativeServer)
        return self.server

    async def status(self) -> AgentExecutionStatus:
        if isinstance(self.server, StigmerServer):
            return self.server.execution.status
        return (await self.native.services.executions.get(self.execution_id)).status


async def native_backend() -> tuple[TestServer, str]:
    server = NativeServer(MemoryWorkflowStarter())
    agent = Agent(api_version="agentic.stigmer.ai/v1", kind="Agent")
    agent.metadata.name = "writer"
    agent.metadata.owner_scope = ApiResourceOwnerScope.organization
    agent.spec.instructions = "Write what is asked for."
    created = await server.services.agents.create(agent)
    execution = AgentExecution(api_version="agentic.stigmer.ai/v1", kind="AgentExecution")
    execution.spec.agent_id, execution.spec.message = created.metadata.id, "hello"
    execution.metadata.SetInParent()
    return server, (await server.services.executions.create(execution)).metadata.id


async def stigmer_backend() -> tuple[TestServer, str]:
    execution = AgentExecution()
    execution.metadata.id, execution.spec.message = "aex-1", "hello"
    return StigmerServer(execution, Session(), Agent()), "aex-1"


class served:
    def __init__(self, server: TestServer, execution_id: str) -> None:
        self._server, self._id = server, execution_id

    async def __aenter__(self) -> Backend:
        await self._server.start()
        self._channel = Channel(self._server.address)
        return Backend(self._server, self._channel, NegotiatingSinks(self._channel), self._id)

    async def __aexit__(self, *_: object) -> None:
        await self._channel.aclose()
        await self._server.stop()


def attempt(backend: Backend, number: int = 1, run: str = "run-1") -> AttemptOf:
    return AttemptOf(backend.execution_id, "test/1", run, number)


def phase(value: int, error: str = "") -> ExecutionEvent:
    return ExecutionEvent(phase_changed=PhaseChanged(phase=value, error=error))  # type: ignore[arg-type]


def begun(name: str = "m1") -> ExecutionEvent:
    return ExecutionEvent(message_started=MessageStarted(message_id=name, type=MESSAGE_AI))


def delta(text: str, name: str = "m1") -> ExecutionEvent:
    return ExecutionEvent(message_delta=MessageDelta(message_id=name, text=text))


def done(name: str = "m1") -> ExecutionEvent:
    return ExecutionEvent(message_completed=MessageCompleted(message_id=name))


def call(name: str = "c1") -> ExecutionEvent:
    return ExecutionEvent(tool_call_started=ToolCallStarted(tool_call_id=name, name="ls", message_id="m1"))


def returned(name: str = "c1", result: str = "ok") -> ExecutionEvent:
    return ExecutionEvent(tool_call_completed=ToolCallCompleted(tool_call_id=name, result=result))
