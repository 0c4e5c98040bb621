"""Sessions: conversations with an agent instance."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from agent_runner.domain.ids import canonical_id, is_id
from agent_runner.domain.kinds import AGENT, AGENT_INSTANCE, API_VERSION, SESSION
from agent_runner.domain.paging import PageRequest
from agent_runner.errors import NotFoundError
from agent_runner.ports.stores import ResourceKey, ResourceStore, StoredResource
from agent_runner.services._clocks import Clock, NewId
from agent_runner.services.resources import Page, ResourceService
from agent_runner.services.turns import SessionTurns
from ai.stigmer.agentic.agentinstance.v1.api_pb2 import AgentInstance
from ai.stigmer.agentic.session.v1.api_pb2 import Session
from ai.stigmer.commons.apiresource.enum_pb2 import organization


class SessionService(ResourceService[Session]):
    """Keeps sessions; the instance of each must be there."""

    def __init__(self, store: ResourceStore, *, clock: Clock, new_id: NewId) -> None:
        super().__init__(SESSION, store, clock=clock, new_id=new_id)
        self.before_delete: Callable[[Session], Awaitable[None]] = _nothing
        """Removes what belongs to a session that is about to be removed."""
        self.after_delete: Callable[[str], Awaitable[None]] = _nothing
        """Removes what was added to a session, by id, while it was removed."""

    def automatic(self, instance: AgentInstance, org: str) -> Session:
        """A session for an execution that names none; not stored yet.

        Args:
            org: of the execution.
        """
        request = Session(api_version=API_VERSION, kind=SESSION.kind)
        request.metadata.id = self._new_id(SESSION.id_prefix)
        request.metadata.name = request.metadata.id
        # A session belongs to an organization, also when its agent is the platform's.
        request.metadata.owner_scope = organization
        request.metadata.org = org or instance.metadata.org
        request.spec.agent_instance_id = instance.metadata.id
        request.spec.subject = "Auto-created session"
        session = self._fresh(request)
        _complete(session, None)
        return session

    def stored(self, session: Session, agent_id: str) -> StoredResource:
        """As it is kept."""
        return self._stored(session, _fields(session, agent_id))

    async def delete(self, resource_id: str) -> Session:
        """Remove a session with everything that is its own: executions, logs, thread and sandbox.

        Running executions are cancelled first. Safe to repeat when it broke off.

        Raises:
            NotFoundError: there is none.
            WorkflowServiceUnavailableError: nothing was removed.
        """
        await self.before_delete(await self.get(resource_id))
        session = await self.discard(resource_id)
        await self.after_delete(session.metadata.id)
        return session

    async def discard(self, resource_id: str) -> Session:
        """Remove a session that nothing has happened in."""
        session = await super().delete(resource_id)
        await SessionTurns(self._store).forget(session.metadata.id)
        return session

    async def list_by_agent(self, some_id: str, page: PageRequest) -> Page[Session]:
        """One page of the sessions of an instance, or of all instances of an agent."""
        return await self.list(page, fields=by_agent(some_id))

    async def _check(self, resource: Session, before: Session | None) -> Mapping[str, str]:
        instance_id = canonical_id(resource.spec.agent_instance_id)
        try:
            stored = await self._store.get(ResourceKey(AGENT_INSTANCE.name, instance_id))
        except NotFoundError:
            raise NotFoundError(
                AGENT_INSTANCE.name, instance_id[:100], "spec.agent_instance_id must name an instance."
            ) from None
        resource.spec.agent_instance_id = instance_id
        _complete(resource, before)
        return _fields(resource, AgentInstance.FromString(stored.body).spec.agent_id)


async def _nothing(_session: object) -> None: ...


def by_agent(some_id: str) -> Mapping[str, str]:
    """What the sessions of an instance, or of an agent, have in common.

    The Stigmer API calls the field `agent_id` and means the instance.
    """
    canonical = canonical_id(some_id)
    return {"agent_id" if is_id(AGENT.id_prefix, canonical) else "agent_instance_id": canonical}


def _complete(session: Session, before: Session | None) -> None:
    """Thread and sandbox outlive an update that leaves them out: they are the session's memory."""
    if before is not None:
        session.spec.thread_id = session.spec.thread_id or before.spec.thread_id
        session.spec.sandbox_id = session.spec.sandbox_id or before.spec.sandbox_id
    session.spec.thread_id = session.spec.thread_id or f"thread-{session.metadata.id}"


def _fields(session: Session, agent_id: str) -> Mapping[str, str]:
    return {"agent_instance_id": session.spec.agent_instance_id, "agent_id": agent_id}
