"""Services on stores in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from unit.services.fakes.resources import agent, execution
from unit.services.fakes.workflows import MemoryWorkflows

from agent_runner.adapters.announcers.memory import MemoryAnnouncer
from agent_runner.adapters.artifacts.objects import ObjectArtifactStore
from agent_runner.adapters.store.memory import MemoryEventLog, MemoryResourceStore
from agent_runner.services.container import Services, build_services
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution


@dataclass
class FakeClock:
    """A clock that stands still until it is moved."""

    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta) -> None:
        self.now += by


@dataclass
class World:
    """Stores that outlive a process, and the services of one."""

    store: MemoryResourceStore = field(default_factory=MemoryResourceStore)
    log: MemoryEventLog = field(default_factory=MemoryEventLog)
    announcer: MemoryAnnouncer = field(default_factory=MemoryAnnouncer)
    workflows: MemoryWorkflows = field(default_factory=MemoryWorkflows)
    artifacts: ObjectArtifactStore = field(default_factory=lambda: ObjectArtifactStore.from_url("memory:///"))
    clock: FakeClock = field(default_factory=FakeClock)

    def process(self, *, replicas: bool = False) -> Services:
        """The services of another process on the same stores."""
        return build_services(
            self.store,
            self.log,
            self.announcer,
            self.workflows,
            self.artifacts,
            clock=self.clock,
            replicas=replicas,
        )


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def services(world: World) -> AsyncIterator[Services]:
    services = world.process()
    yield services
    await services.aclose()


@pytest.fixture
async def helper(services: Services) -> Agent:
    return await services.agents.create(agent())


@pytest.fixture
async def running(services: Services, helper: Agent) -> AgentExecution:
    """An execution whose workflow was started."""
    return await services.executions.create(execution(agent_id=helper.metadata.id))
