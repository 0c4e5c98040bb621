"""What a runner reads to know what to run, and the one thing it leaves there."""

from __future__ import annotations

from typing import Protocol

from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentinstance.v1.api_pb2 import AgentInstance
from ai.stigmer.agentic.environment.v1.api_pb2 import Environment
from ai.stigmer.agentic.session.v1.api_pb2 import Session
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference


class ResourceReader(Protocol):
    """Reads resources from the control plane. Every method raises the same errors.

    Raises:
        NotFoundError: there is none.
        UnavailableError: the control plane cannot be reached; try again.
    """

    async def execution(self, execution_id: str) -> AgentExecution: ...

    async def session(self, session_id: str) -> Session: ...

    async def instance(self, instance_id: str) -> AgentInstance: ...

    async def agent(self, agent_id: str) -> Agent: ...

    async def environment(self, reference: ApiResourceReference) -> Environment:
        """By slug, and organization where the reference has one."""
        ...

    async def keep_sandbox(self, session: Session, sandbox_id: str) -> None:
        """Note the session's sandbox, for whoever runs its next turn.

        Args:
            session: as it was read.
        """
        ...
