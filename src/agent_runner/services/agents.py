"""Agents, each of which has a default instance."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from agent_runner.domain.ids import suffix
from agent_runner.domain.kinds import AGENT, AGENT_INSTANCE, API_VERSION
from agent_runner.domain.slugs import MOST_CHARACTERS
from agent_runner.errors import AgentRunnerError, AlreadyExistsError, NotFoundError
from agent_runner.ports.stores import ResourceStore
from agent_runner.services._clocks import Clock, NewId
from agent_runner.services.agent_instances import AgentInstanceService
from agent_runner.services.resources import ResourceService
from agent_runner.services.secret_fields import SecretFields
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentinstance.v1.api_pb2 import AgentInstance

log = structlog.get_logger(__name__)


class AgentService(ResourceService[Agent]):
    """Keeps agents, and the instance by which an agent runs when none is named."""

    def __init__(
        self,
        store: ResourceStore,
        instances: AgentInstanceService,
        *,
        clock: Clock,
        new_id: NewId,
        secrets: SecretFields | None = None,
    ) -> None:
        super().__init__(AGENT, store, clock=clock, new_id=new_id, secrets=secrets)
        self._instances = instances

    async def create(self, request: Agent) -> Agent:
        """Store an agent and its default instance, or neither."""
        agent = await super().create(request)
        try:
            await self._make_default_instance(agent)
        except AgentRunnerError:
            await self._store.delete(self._key(agent.metadata.id))
            raise
        return agent

    async def update(self, request: Agent) -> Agent:
        agent = await super().update(request)
        await self.default_instance(agent)
        return agent

    async def delete(self, resource_id: str) -> Agent:
        """Remove an agent and its default instance; other instances stay."""
        agent = await super().delete(resource_id)
        try:
            await self._instances.delete(agent.status.default_instance_id)
        except NotFoundError:
            log.info("default instance was gone already", agent_id=agent.metadata.id)
        return agent

    async def default_instance(self, agent: Agent) -> AgentInstance:
        """The agent's default instance, made again when it was lost."""
        try:
            return await self._instances.get(agent.status.default_instance_id)
        except NotFoundError:
            log.info("default instance is made again", agent_id=agent.metadata.id)
            return await self._make_default_instance(agent)

    async def _check(self, resource: Agent, before: Agent | None) -> Mapping[str, str]:
        # The id is chosen before the instance is there, so that making it is safe to repeat.
        if not resource.status.default_instance_id:
            resource.status.default_instance_id = self._new_id(AGENT_INSTANCE.id_prefix)
        return {}

    async def _make_default_instance(self, agent: Agent) -> AgentInstance:
        instance = _default_instance(agent)
        try:
            return await self._instances.create(instance)
        except AlreadyExistsError:
            try:
                return await self._instances.get(instance.metadata.id)
            except NotFoundError:
                # Another instance has the slug: then the id makes one that is free.
                end = suffix(instance.metadata.id)
                instance.metadata.slug = f"{instance.metadata.slug[: MOST_CHARACTERS - len(end) - 1]}-{end}"
                return await self._instances.create(instance)


def _default_instance(agent: Agent) -> AgentInstance:
    instance = AgentInstance(api_version=API_VERSION, kind=AGENT_INSTANCE.kind)
    metadata = instance.metadata
    metadata.id = agent.status.default_instance_id
    metadata.name = f"{agent.metadata.name or agent.metadata.slug}-default"
    metadata.slug = f"{agent.metadata.slug[: MOST_CHARACTERS - len('-default')]}-default"
    metadata.org = agent.metadata.org
    metadata.owner_scope = agent.metadata.owner_scope
    instance.spec.agent_id = agent.metadata.id
    instance.spec.description = "Default instance, made with the agent."
    return instance
