"""Resources over gRPC, from any server of the Stigmer API."""

from __future__ import annotations

from agent_runner.client.channels import Channel
from agent_runner.errors import NotFoundError
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agent.v1.io_pb2 import AgentId
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.io_pb2 import AgentExecutionId
from ai.stigmer.agentic.agentinstance.v1.api_pb2 import AgentInstance
from ai.stigmer.agentic.agentinstance.v1.io_pb2 import AgentInstanceId
from ai.stigmer.agentic.environment.v1.api_pb2 import Environment
from ai.stigmer.agentic.session.v1.api_pb2 import Session
from ai.stigmer.agentic.session.v1.io_pb2 import SessionId
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference

_PACKAGE = "/ai.stigmer.agentic"
_EXECUTION = f"{_PACKAGE}.agentexecution.v1.AgentExecutionQueryController/get"
_SESSION = f"{_PACKAGE}.session.v1.SessionQueryController/get"
_SESSION_UPDATE = f"{_PACKAGE}.session.v1.SessionCommandController/update"
_INSTANCE = f"{_PACKAGE}.agentinstance.v1.AgentInstanceQueryController/get"
_AGENT = f"{_PACKAGE}.agent.v1.AgentQueryController/get"
_ENVIRONMENT = f"{_PACKAGE}.environment.v1.EnvironmentQueryController/getByReference"


class GrpcResourceReader:
    """Reads by the query services; the channel retries what is away for a moment."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def execution(self, execution_id: str) -> AgentExecution:
        _ensure_named("execution", execution_id)
        return await self._channel.unary(_EXECUTION, AgentExecutionId(value=execution_id), AgentExecution)

    async def session(self, session_id: str) -> Session:
        _ensure_named("session", session_id)
        return await self._channel.unary(_SESSION, SessionId(value=session_id), Session)

    async def instance(self, instance_id: str) -> AgentInstance:
        _ensure_named("agent instance", instance_id)
        return await self._channel.unary(_INSTANCE, AgentInstanceId(value=instance_id), AgentInstance)

    async def agent(self, agent_id: str) -> Agent:
        _ensure_named("agent", agent_id)
        return await self._channel.unary(_AGENT, AgentId(value=agent_id), Agent)

    async def environment(self, reference: ApiResourceReference) -> Environment:
        _ensure_named("environment", reference.slug)
        return await self._channel.unary(_ENVIRONMENT, reference, Environment)

    async def keep_sandbox(self, session: Session, sandbox_id: str) -> None:
        changed = Session()
        changed.CopyFrom(session)
        changed.spec.sandbox_id = sandbox_id
        await self._channel.unary(_SESSION_UPDATE, changed, Session)


def _ensure_named(kind: str, name: str) -> None:
    """Servers of the Stigmer API do not all say what is wrong with an empty id."""
    if not name:
        raise NotFoundError(kind, name, "What refers to it names none.")
