"""All services, built on the ports they are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_runner.domain.archives import ArchiveLimits
from agent_runner.domain.attempts import LIMITS, AttemptLimits
from agent_runner.domain.kinds import ENVIRONMENT, EXECUTION_CONTEXT, MCP_SERVER
from agent_runner.ports.announcers import Announcer
from agent_runner.ports.artifacts import ArtifactStore
from agent_runner.ports.secrets import SecretBox
from agent_runner.ports.stores import EventLog, ResourceStore
from agent_runner.ports.workflows import WorkflowStarter
from agent_runner.services._clocks import Clock, IdSource, utc_now
from agent_runner.services._logbook import Logbook
from agent_runner.services.agent_instances import AgentInstanceService
from agent_runner.services.agents import AgentService
from agent_runner.services.environments import ExecutionEnvironments
from agent_runner.services.events import EventService
from agent_runner.services.execution_records import ExecutionRecord, ExecutionRecords
from agent_runner.services.execution_runs import ExecutionRuns
from agent_runner.services.executions import ExecutionService
from agent_runner.services.identity import StoreHealth
from agent_runner.services.key_rotation import KeyRotation
from agent_runner.services.mcp_servers import McpServerService
from agent_runner.services.metrics import Counters, MetricService
from agent_runner.services.reconciling import Reconciler
from agent_runner.services.removal import SessionRemoval
from agent_runner.services.resources import ResourceService
from agent_runner.services.retention import Retention
from agent_runner.services.secret_fields import SecretFields
from agent_runner.services.sessions import SessionService
from agent_runner.services.skills import SkillService
from agent_runner.services.tool_results import ToolResultService
from agent_runner.services.turns import SessionTurns
from agent_runner.services.watching import WatchService
from agent_runner.services.workspaces import WorkspaceService
from ai.stigmer.agentic.environment.v1.api_pb2 import Environment
from ai.stigmer.agentic.executioncontext.v1.api_pb2 import ExecutionContext


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that can be done, whatever protocol asks.

    Attributes:
        runs: starts what may run.
        reconciler: mends what a crash left; `reconciler.reconcile()` is due at start and from time to time.
        events: what runners write.
        watches: reading executions, once or live.
        retention: removes what is old; `retention.sweep()` is due from time to time.
        results: of tools, where they are too long for an event.
        health: whether the stores answer.
        variables: what the holders of executions are given; `variables.sweep()` is due at start and then.
    """

    agents: AgentService
    agent_instances: AgentInstanceService
    sessions: SessionService
    executions: ExecutionService
    environments: ResourceService[Environment]
    execution_contexts: ResourceService[ExecutionContext]
    skills: SkillService
    mcp_servers: McpServerService
    runs: ExecutionRuns
    reconciler: Reconciler
    events: EventService
    watches: WatchService
    workflows: WorkflowStarter
    variables: ExecutionEnvironments
    keys: KeyRotation
    retention: Retention
    metrics: MetricService
    workspaces: WorkspaceService
    results: ToolResultService
    health: StoreHealth

    @property
    def by_kind(self) -> Mapping[int, ResourceService[Any]]:
        """The service of each kind, by `ApiResourceKind`."""
        services: tuple[ResourceService[Any], ...] = (
            self.agents,
            self.agent_instances,
            self.sessions,
            self.executions,
            self.environments,
            self.execution_contexts,
            self.skills,
            self.mcp_servers,
        )
        return {service.spec.number: service for service in services}

    async def aclose(self) -> None:
        """Let what was begun in the background come to its end."""
        await self.runs.aclose()
        await self.variables.aclose()


def build_services(
    store: ResourceStore,
    log: EventLog,
    announcer: Announcer,
    workflows: WorkflowStarter,
    artifacts: ArtifactStore,
    *,
    clock: Clock = utc_now,
    replicas: bool = False,
    spool: Path | None = None,
    skill_limits: ArchiveLimits | None = None,
    secrets: SecretBox | None = None,
    attempt_limits: AttemptLimits = LIMITS,
) -> Services:
    """Build the services.

    Args:
        replicas: True when other processes write to the same stores. Reads then look at the log, rather
            than trust what is in memory; writes are safe either way.
        spool: directory for uploads as they arrive; None: the system's for temporary files.
        skill_limits: what a skill's archive may be; None: the usual.
        secrets: seals secret variables; None: they are refused.
        attempt_limits: how often an execution may be lost with its worker.
    """
    new_id, sealing = IdSource(clock), SecretFields(secrets)
    records, turns = ExecutionRecords(store, clock), SessionTurns(store)
    logbook = Logbook(records, log, announcer, clock=clock, replicas=replicas)
    ran = _running(store, logbook, turns, workflows, sealing, clock, attempt_limits)
    results = ToolResultService(logbook, ran.watches, artifacts)
    instances = AgentInstanceService(store, clock=clock, new_id=new_id)
    agents = AgentService(store, instances, clock=clock, new_id=new_id, secrets=sealing)
    sessions = SessionService(store, clock=clock, new_id=new_id)
    executions = ExecutionService(
        store,
        agents=agents,
        instances=instances,
        sessions=sessions,
        records=records,
        turns=turns,
        events=ran.events,
        watches=ran.watches,
        runs=ran.runs,
        workflows=workflows,
        results=results,
        variables=ran.variables,
        clock=clock,
        new_id=new_id,
        secrets=sealing,
    )
    removal = SessionRemoval(
        store, executions=executions, turns=turns, watches=ran.watches, workflows=workflows
    )
    sessions.before_delete, sessions.after_delete = removal.remove_contents, removal.remove_late
    return Services(
        agents=agents,
        agent_instances=instances,
        sessions=sessions,
        executions=executions,
        environments=ResourceService(ENVIRONMENT, store, clock=clock, new_id=new_id, secrets=sealing),
        execution_contexts=ResourceService(
            EXECUTION_CONTEXT, store, clock=clock, new_id=new_id, secrets=sealing
        ),
        skills=SkillService(store, artifacts, clock=clock, new_id=new_id, spool=spool, limits=skill_limits),
        mcp_servers=McpServerService(MCP_SERVER, store, clock=clock, new_id=new_id, secrets=sealing),
        runs=ran.runs,
        reconciler=ran.reconciler,
        events=ran.events,
        watches=ran.watches,
        workflows=workflows,
        variables=ran.variables,
        keys=KeyRotation(store, sealing),
        retention=Retention(
            store,
            log,
            sessions=sessions,
            executions=executions,
            watches=ran.watches,
            clock=clock,
            counters=ran.counters,
        ),
        metrics=MetricService(store, ran.watches, ran.counters),
        workspaces=WorkspaceService(sessions, workflows),
        results=results,
        health=StoreHealth(store),
    )


@dataclass(frozen=True, slots=True)
class _Running:
    """What carries executions from their start to their end."""

    events: EventService
    watches: WatchService
    runs: ExecutionRuns
    reconciler: Reconciler
    variables: ExecutionEnvironments
    counters: Counters


def _running(
    store: ResourceStore,
    logbook: Logbook,
    turns: SessionTurns,
    workflows: WorkflowStarter,
    sealing: SecretFields,
    clock: Clock,
    attempt_limits: AttemptLimits,
) -> _Running:
    events, watches = EventService(logbook, attempt_limits), WatchService(logbook, turns)
    counters = Counters()
    runs = ExecutionRuns(turns=turns, events=events, watches=watches, workflows=workflows)
    reconciler = Reconciler(
        store,
        runs=runs,
        turns=turns,
        events=events,
        watches=watches,
        workflows=workflows,
        clock=clock,
        counters=counters,
    )
    variables = ExecutionEnvironments(store, logbook, sealing, clock=clock)

    def ended(record: ExecutionRecord) -> None:
        runs.ended(record)
        variables.ended(record)

    logbook.on_end = ended
    return _Running(events, watches, runs, reconciler, variables, counters)
