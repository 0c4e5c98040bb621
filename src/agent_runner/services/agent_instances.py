"""Agent instances: an agent with the environments it runs with."""

from __future__ import annotations

from collections.abc import Mapping

from agent_runner.domain.ids import canonical_id
from agent_runner.domain.kinds import AGENT, AGENT_INSTANCE, ENVIRONMENT
from agent_runner.domain.paging import PageRequest
from agent_runner.domain.references import lookup_of
from agent_runner.errors import InvalidRequestError, NotFoundError
from agent_runner.ports.stores import ResourceKey, ResourceStore
from agent_runner.services._clocks import Clock, NewId
from agent_runner.services.resources import Page, ResourceService
from ai.stigmer.agentic.agentinstance.v1.api_pb2 import AgentInstance


class AgentInstanceService(ResourceService[AgentInstance]):
    """Keeps instances; the agent of each must be there."""

    def __init__(self, store: ResourceStore, *, clock: Clock, new_id: NewId) -> None:
        super().__init__(AGENT_INSTANCE, store, clock=clock, new_id=new_id)

    async def list_by_agent(self, agent_id: str, page: PageRequest) -> Page[AgentInstance]:
        """One page of an agent's instances, newest first; none for an agent that is not there."""
        return await self.list(page, fields={"agent_id": canonical_id(agent_id)})

    async def count_by_agent(self, agent_id: str) -> int:
        return await self.count({"agent_id": canonical_id(agent_id)})

    async def _check(self, resource: AgentInstance, before: AgentInstance | None) -> Mapping[str, str]:
        agent_id = canonical_id(resource.spec.agent_id)
        try:
            await self._store.get(ResourceKey(AGENT.name, agent_id))
        except NotFoundError:
            raise NotFoundError(AGENT.name, agent_id[:100], "spec.agent_id must name an agent.") from None
        resource.spec.agent_id = agent_id
        _check_references(resource)
        return {"agent_id": agent_id}


def _check_references(instance: AgentInstance) -> None:
    """Environments may come later than the instance; of another organization they may never be."""
    for number, reference in enumerate(instance.spec.environment_refs):
        lookup = lookup_of(reference, ENVIRONMENT)
        if lookup.org not in (None, instance.metadata.org) and instance.metadata.org:
            raise InvalidRequestError.of(
                f"spec.environment_refs[{number}].org",
                f"must be the instance's own organization, {instance.metadata.org!r}, or left out",
            )
