"""Running one turn: everything it needs read, made and opened, the agent run, all of it closed again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog
from temporalio import activity

from agent_runner.domain.masking import LiveSecrets, Masker
from agent_runner.domain.mcp_servers import plan_servers, unknown_servers
from agent_runner.errors import AgentRunnerError, LimitReachedError
from agent_runner.ports.agents import AgentFactory, AgentSession, AgentSpecification, Checkpoints, Turn
from agent_runner.ports.environments import EnvironmentResolver, ResolvedEnvironment
from agent_runner.ports.file_tasks import FileTasks
from agent_runner.ports.mcp import McpConnector, McpTools
from agent_runner.ports.models import Model, ModelResolver
from agent_runner.ports.resource_readers import ResourceReader
from agent_runner.ports.sandboxes import Sandbox, SandboxProvider, SandboxSpec
from agent_runner.ports.status_sinks import Grant, StatusSink, StatusSinks
from agent_runner.ports.tool_results import ToolResults
from agent_runner.runner import turns
from agent_runner.runner.patience import patiently
from agent_runner.runner.reporting import MaskedReport
from agent_runner.runner.tool_results import KeptResults
from agent_runner.services.skill_loading import LoadedSkills, SkillLoader
from agent_runner.v1.events_pb2 import (
    ExecutionEvent,
    MessageCompleted,
    MessageStarted,
    PhaseChanged,
    RunDescribed,
    WarningRaised,
)
from agent_runner.v1.options_pb2 import Limits
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_IN_PROGRESS, MESSAGE_HUMAN
from ai.stigmer.agentic.agentexecution.v1.spec_pb2 import AgentExecutionSpec
from ai.stigmer.agentic.session.v1.api_pb2 import Session

log = structlog.get_logger(__name__)

_NOTE_AFTER_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Parts:
    """What a worker runs agents with.

    Attributes:
        environments: asks the control plane for variables; None reads the layers and merges them here.
        skills: None on a worker that cannot bring skills to its sandboxes.
        mcp: None on a worker that opens no MCP servers.
        checkpoints: what `agents` remember by; None on a worker that never removes any of it.
        keep_checkpoints: how many of a thread stay after a turn; 0 keeps all.
        file_tasks: where people ask for files of sessions; None on a worker that does not serve them.
        results: keeps results of tools that are too long for an event; None cuts them.
        secrets: learns what this process must keep out of its logs.
    """

    sinks: StatusSinks
    reader: ResourceReader
    sandboxes: SandboxProvider
    models: ModelResolver
    agents: AgentFactory
    environments: EnvironmentResolver | None = None
    skills: SkillLoader | None = None
    mcp: McpConnector | None = None
    checkpoints: Checkpoints | None = None
    keep_checkpoints: int = 0
    file_tasks: FileTasks | None = None
    results: ToolResults | None = None
    secrets: LiveSecrets = field(default_factory=LiveSecrets)


class TurnRun:
    """One run of one turn; made for each attempt.

    Args:
        learn: told the secrets once they are known, before anything runs that could show them.
    """

    def __init__(
        self,
        parts: Parts,
        sink: StatusSink,
        grant: Grant,
        spec: AgentExecutionSpec,
        turn: Turn,
        learn: Callable[[Masker], None],
    ) -> None:
        self._parts = parts
        self._sink = sink
        self._grant = grant
        self._before = grant.execution.status
        self._spec = spec
        self._turn = turn
        self._learn = learn
        self._masker = Masker(())
        self._knows_secrets = False

    async def run(self) -> None:
        """Run it to its end.

        Raises:
            DrainedError: the worker is to stop; the turn goes on elsewhere.
            AgentRunnerError: why it cannot run, or failed.
        """
        if self._before.phase != EXECUTION_IN_PROGRESS:
            self._sink.emit(ExecutionEvent(phase_changed=PhaseChanged(phase=EXECUTION_IN_PROGRESS)))
        try:
            plan = await patiently(self._plan, self._turn.execution_id)
        finally:
            # Not unless the secrets are known: people paste them into messages.
            if self._knows_secrets:
                self._show_message()
        limits = turns.limits(self._spec, plan.agent)
        async with self._wall_limit(limits.wall_seconds), self._skills(plan) as skills:
            sandbox, model = await self._sandbox_and_model(plan, skills)
            self._describe(sandbox, model, skills)
            async with self._kept(plan.session, sandbox), self._tools(plan, sandbox) as tools:
                self._warn((model.notice, *sandbox.warnings, *plan.warnings, *turns.unmasked(plan)))
                self._warn(unknown_servers(plan.agent.spec))
                self._warn((*skills.warnings, *tools.warnings))
                await self._run_agent(self._specification(plan, skills, tools, sandbox, model, limits))

    async def _plan(self) -> turns.Plan:
        return await turns.plan(
            self._parts.reader,
            self._parts.environments,
            self._spec,
            self._turn.execution_id,
            self._grant.attempt,
            self._grant.token,
            self._learn_secrets,
        )

    def _learn_secrets(self, environment: ResolvedEnvironment) -> None:
        self._masker, self._knows_secrets = Masker(environment.secrets), True
        self._learn(self._masker)

    async def _run_agent(self, specification: AgentSpecification) -> None:
        report = MaskedReport(self._sink, self._masker)
        async with (
            self._parts.agents.open(specification, report) as session,
            _drained_after(activity.wait_for_worker_shutdown, session, "The worker stops"),
            _drained_after(self._sink.wait_pause, session, "Somebody asked to pause"),
        ):
            try:
                async for event in session.run(self._turn):
                    report.emit(event)
            finally:
                report.end()

    def _show_message(self) -> None:
        """What the user said, for those who watch before the agent is there."""
        if any(message.type == MESSAGE_HUMAN for message in self._before.messages):
            return
        message_id = f"human-{self._turn.execution_id}"
        text = self._masker.text(self._turn.message)
        started = MessageStarted(message_id=message_id, type=MESSAGE_HUMAN, content=text)
        self._sink.emit(ExecutionEvent(message_started=started))
        self._sink.emit(ExecutionEvent(message_completed=MessageCompleted(message_id=message_id)))

    def _skills(self, plan: turns.Plan) -> AbstractAsyncContextManager[LoadedSkills]:
        if self._parts.skills is None:
            return nullcontext(turns.no_skills(plan.agent))
        return self._parts.skills.load(plan.agent, pinned=self._before.run.skills)

    def _tools(self, plan: turns.Plan, sandbox: Sandbox) -> AbstractAsyncContextManager[McpTools]:
        if self._parts.mcp is None:
            return nullcontext(turns.no_tools(plan.agent))
        environment = plan.environment
        servers = plan_servers(plan.agent.spec.mcp_servers, environment.mcp_servers, environment.values)
        return self._parts.mcp.open(servers, sandbox)

    async def _sandbox_and_model(self, plan: turns.Plan, skills: LoadedSkills) -> tuple[Sandbox, Model]:
        wanted = SandboxSpec(
            session_id=plan.session.metadata.id or self._turn.thread_id,
            env=plan.environment.values,
            skills=skills.paths,
            previous_id=plan.session.spec.sandbox_id,
        )
        wishes = turns.model_wishes(self._spec, plan.agent, self._before.run.model)
        return await asyncio.gather(
            self._parts.sandboxes.ensure(wanted),
            # Loads the provider's library.
            asyncio.to_thread(self._parts.models.resolve, *wishes),
        )

    @asynccontextmanager
    async def _kept(self, session: Session, sandbox: Sandbox) -> AsyncIterator[None]:
        """Beside the turn, have the session remember its sandbox; else the next turn has to look for it."""
        if not session.metadata.id or session.spec.sandbox_id == sandbox.id:
            yield
            return

        ended = asyncio.Event()

        async def keep() -> None:
            # Not at once: the first words of the answer would wait for it.
            with suppress(TimeoutError):
                async with asyncio.timeout(_NOTE_AFTER_SECONDS):
                    await ended.wait()
            try:
                await self._parts.reader.keep_sandbox(session, sandbox.id)
            except AgentRunnerError as error:
                log.info("sandbox not noted", session_id=session.metadata.id, reason=str(error))

        keeping = asyncio.create_task(keep(), name="note the sandbox")
        try:
            yield
        finally:
            ended.set()
            await asyncio.wait([keeping], timeout=1)
            keeping.cancel()

    def _describe(self, sandbox: Sandbox, model: Model, skills: LoadedSkills) -> None:
        described = RunDescribed(
            model=model.name, engine=self._parts.agents.engine, sandbox_id=sandbox.id, skills=skills.used
        )
        self._sink.emit(ExecutionEvent(run_described=described))

    def _warn(self, texts: Iterable[str]) -> None:
        for text in texts:
            if text:
                warning = WarningRaised(text=self._masker.text(text))
                self._sink.emit(ExecutionEvent(warning_raised=warning))

    def _specification(
        self,
        plan: turns.Plan,
        skills: LoadedSkills,
        tools: McpTools,
        sandbox: Sandbox,
        model: Model,
        limits: Limits,
    ) -> AgentSpecification:
        return AgentSpecification(
            name=plan.agent.metadata.slug,
            instructions=turns.instructions(plan.agent, skills),
            model=model,
            sandbox=sandbox,
            tools=tools.for_agent(),
            sub_agents=turns.sub_agents(plan.agent, skills, tools),
            limits=limits,
            used=self._before.run.usage,
            used_tool_calls=len(self._before.tool_calls),
            mask=self._masker.value,
            results=KeptResults(
                self._parts.results, self._turn.execution_id, self._grant, self._masker, self._warn
            ),
            steering=self._sink.steering,
        )

    @asynccontextmanager
    async def _wall_limit(self, seconds: int) -> AsyncIterator[None]:
        """Ends the turn when the execution, earlier attempts included, has taken `seconds`; 0 never does."""
        if not seconds:
            yield
            return
        limit = asyncio.timeout(max(seconds - self._seconds_so_far(), 0))
        try:
            async with limit:
                yield
        except TimeoutError:
            if limit.expired():
                raise LimitReachedError("wall_seconds", seconds) from None
            raise

    def _seconds_so_far(self) -> float:
        if not self._before.started_at:
            return 0
        return (datetime.now(UTC) - datetime.fromisoformat(self._before.started_at)).total_seconds()


@asynccontextmanager
async def _drained_after(
    asked: Callable[[], Awaitable[None]], session: AgentSession, reason: str
) -> AsyncIterator[None]:
    """Ask the turn to stop after its super-step when somebody asks for it."""

    async def wait() -> None:
        await asked()
        session.request_drain(reason)

    waiting = asyncio.create_task(wait(), name=f"drain: {reason}")
    try:
        yield
    finally:
        waiting.cancel()
