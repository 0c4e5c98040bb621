"""One attempt of a worker at an execution: taken, run, reported, ended in exactly one way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog
from temporalio import activity
from temporalio.exceptions import ApplicationError

from agent_runner.domain.masking import LiveSecrets, Masker
from agent_runner.domain.status import is_terminal
from agent_runner.errors import (
    AgentRunnerError,
    FailedPreconditionError,
    LimitReachedError,
    NotFoundError,
    UnavailableError,
)
from agent_runner.ports.agents import AgentFactory, AgentSession, AgentSpecification, DrainedError, Turn
from agent_runner.ports.models import ModelResolver
from agent_runner.ports.resource_readers import ResourceReader
from agent_runner.ports.sandboxes import Sandbox, SandboxProvider, SandboxSpec
from agent_runner.ports.status_sinks import AttemptOf, Grant, StatusSink, StatusSinks
from agent_runner.runner import turns
from agent_runner.runner.failures import as_failure, drained, final, short
from agent_runner.runner.payloads import EXECUTION_CANCELLED, EXECUTION_FAILED
from agent_runner.runner.reporting import MaskedReport
from agent_runner.runner.results import summary
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
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED as CANCELLED,
)
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_COMPLETED as COMPLETED,
)
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_FAILED as FAILED,
)
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_IN_PROGRESS as IN_PROGRESS,
)
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import MESSAGE_HUMAN, ExecutionPhase
from ai.stigmer.agentic.agentexecution.v1.spec_pb2 import AgentExecutionSpec

log = structlog.get_logger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_MARGIN = timedelta(seconds=10)
"""Left of an attempt's time to report how it ended."""
_UNWIND = timedelta(seconds=10)
"""For an agent to let go of model, tools and sandbox when it is stopped."""
_LAST_WORDS = timedelta(seconds=30)
"""For reporting a cancel or a retry, which the workflow makes up for when it does not arrive."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a worker runs agents with.

    Attributes:
        skills: None on a worker that cannot bring skills to its sandboxes.
        secrets: learns what this process must keep out of its logs.
    """

    sinks: StatusSinks
    reader: ResourceReader
    sandboxes: SandboxProvider
    models: ModelResolver
    agents: AgentFactory
    skills: SkillLoader | None = None
    secrets: LiveSecrets = field(default_factory=LiveSecrets)


def worker_name() -> str:
    """Host and process, for people."""
    return f"{platform.node()}/{os.getpid()}"


class Attempt:
    """Runs the turn of one execution, once. Made and run inside the activity."""

    def __init__(self, parts: Parts, argument: AgentExecution, thread_id: str) -> None:
        self._parts = parts
        self._argument = argument
        self._thread_id = thread_id
        self._execution_id = argument.metadata.id
        self._info = activity.info()
        self._masker = Masker(())
        self._secrets = contextlib.ExitStack()

    async def run(self) -> AgentExecutionStatus:
        """Run it to its end.

        Returns:
            The final status, cut to what history carries, of an execution that COMPLETED.

        Raises:
            ApplicationError: it failed for good and FAILED is stored; or it is to be tried again.
            asyncio.CancelledError: it was cancelled, and CANCELLED is stored if it could be.
        """
        try:
            with self._secrets:
                return await self._take_and_run()
        except asyncio.CancelledError:
            details = activity.cancellation_details()
            if details is not None and details.worker_shutdown:
                raise drained("The worker was stopped") from None
            raise

    async def _take_and_run(self) -> AgentExecutionStatus:
        try:
            sink, grant = await self._take()
        except FailedPreconditionError:
            return await self._ended_before()
        except AgentRunnerError as error:
            log.warning("execution not taken", execution_id=self._execution_id, reason=str(error))
            raise as_failure(error) from None
        try:
            return await self._run_and_report(sink, grant)
        finally:
            await sink.aclose()

    async def _take(self) -> tuple[StatusSink, Grant]:
        """Take the execution, waiting for as long as the control plane is away."""
        pause = _FIRST_PAUSE
        attempt = AttemptOf(
            execution_id=self._execution_id,
            worker=worker_name(),
            workflow_run_id=self._info.workflow_run_id or "",
            activity_attempt=self._info.attempt,
            # A guess: the engine, which knows, can only be asked once the execution is ours.
            resumed=self._info.attempt > 1,
        )
        while True:
            try:
                return await self._parts.sinks.open(attempt)
            except UnavailableError as error:
                log.warning(
                    "waiting for the control plane", execution_id=self._execution_id, reason=str(error)
                )
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _ended_before(self) -> AgentExecutionStatus:
        """An earlier attempt stored the end and died before it could say so."""
        try:
            execution = await self._parts.reader.execution(self._execution_id)
        except AgentRunnerError as error:
            raise as_failure(error) from None
        status = execution.status
        if status.phase == COMPLETED:
            return summary(status)
        kind = EXECUTION_CANCELLED if status.phase == CANCELLED else EXECUTION_FAILED
        raise final(status.error, kind)

    async def _run_and_report(self, sink: StatusSink, grant: Grant) -> AgentExecutionStatus:
        spec = self._spec(grant.execution)
        turn = asyncio.create_task(self._turn(sink, spec, grant.execution.status))
        stop = asyncio.create_task(sink.wait_stop())
        try:
            await asyncio.wait({turn, stop}, timeout=self._time_left(), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _end(turn)
            await self._on_cancel(sink)
            raise
        finally:
            stop.cancel()
            stopped = not turn.done()
            if stopped:
                await _end(turn)
        error = None if not turn.done() or turn.cancelled() else turn.exception()
        if stop.done() and not stop.cancelled() and (lost := stop.exception()) is not None:
            raise self._as_lost(lost) from None
        if stopped and (error is not None or not turn.done() or turn.cancelled()):
            return await self._on_stop(sink)
        return await self._on_end(sink, error)

    def _spec(self, stored: AgentExecution) -> AgentExecutionSpec:
        """The stored one, which has all fields; the argument's where a foreign server has less there."""
        return stored.spec if stored.spec.message or not self._argument.spec.message else self._argument.spec

    def _time_left(self) -> float | None:
        """Seconds until this attempt must be over; None when its time is not limited."""
        limit = self._info.start_to_close_timeout
        if limit is None:
            return None
        margin = min(_MARGIN, limit / 10)
        return (self._info.started_time + limit - margin - datetime.now(UTC)).total_seconds()

    # The turn

    async def _turn(self, sink: StatusSink, spec: AgentExecutionSpec, before: AgentExecutionStatus) -> None:
        self._greet(sink, spec, before)
        plan = await turns.plan(self._parts.reader, spec)
        self._masker = Masker(plan.environment.secrets.values())
        self._secrets.enter_context(self._parts.secrets.hold(self._masker))
        limits = turns.limits(spec, plan.agent)
        turn = Turn(self._execution_id, self._thread_id, spec.message)
        report = MaskedReport(sink, self._masker)
        async with (
            self._wall_limit(limits.wall_seconds, before),
            self._skills(plan.agent, before) as skills,
            self._parts.agents.open(await self._specify(sink, plan, skills, limits), report) as session,
            _drained_on_shutdown(session),
        ):
            async for event in session.run(turn):
                report.emit(event)

    def _skills(
        self, agent: Agent, before: AgentExecutionStatus
    ) -> contextlib.AbstractAsyncContextManager[LoadedSkills]:
        if self._parts.skills is not None:
            return self._parts.skills.load(agent, pinned=before.run.skills)
        return contextlib.nullcontext(turns.no_skills(agent))

    async def _specify(
        self, sink: StatusSink, plan: turns.Plan, skills: LoadedSkills, limits: Limits
    ) -> AgentSpecification:
        """Everything the engine needs, made; what it is, told to those who watch."""
        wishes = turns.model_wishes(plan.spec, plan.agent)
        sandbox, model = await asyncio.gather(
            self._sandbox(plan, skills),
            # Loads the provider's library.
            asyncio.to_thread(self._parts.models.resolve, *wishes),
        )
        described = RunDescribed(
            model=model.name, engine=self._parts.agents.engine, sandbox_id=sandbox.id, skills=skills.used
        )
        sink.emit(ExecutionEvent(run_described=described))
        for text in (model.notice, *sandbox.warnings, *plan.warnings, *skills.warnings):
            if text:
                sink.emit(ExecutionEvent(warning_raised=WarningRaised(text=self._masker.text(text))))
        return AgentSpecification(
            name=plan.agent.metadata.slug,
            instructions=turns.instructions(plan.agent, skills),
            model=model,
            sandbox=sandbox,
            sub_agents=turns.sub_agents(plan.agent, skills),
            limits=limits,
        )

    def _greet(self, sink: StatusSink, spec: AgentExecutionSpec, before: AgentExecutionStatus) -> None:
        """What a watcher sees before the agent is there."""
        if before.phase != IN_PROGRESS:
            sink.emit(ExecutionEvent(phase_changed=PhaseChanged(phase=IN_PROGRESS)))
        if any(message.type == MESSAGE_HUMAN for message in before.messages):
            return
        message_id = f"human-{self._execution_id}"
        started = MessageStarted(message_id=message_id, type=MESSAGE_HUMAN, content=spec.message)
        sink.emit(ExecutionEvent(message_started=started))
        sink.emit(ExecutionEvent(message_completed=MessageCompleted(message_id=message_id)))

    async def _sandbox(self, plan: turns.Plan, skills: LoadedSkills) -> Sandbox:
        return await self._parts.sandboxes.ensure(
            SandboxSpec(
                session_id=plan.session.metadata.id or self._thread_id,
                env=plan.environment.values,
                skills=skills.paths,
                previous_id=plan.session.spec.sandbox_id,
            )
        )

    @contextlib.asynccontextmanager
    async def _wall_limit(self, seconds: int, before: AgentExecutionStatus) -> AsyncIterator[None]:
        """Ends the turn when the execution, earlier attempts included, has taken `seconds`; 0 never does."""
        if not seconds:
            yield
            return
        began = datetime.fromisoformat(before.started_at) if before.started_at else datetime.now(UTC)
        left = seconds - (datetime.now(UTC) - began).total_seconds()
        limit = asyncio.timeout(max(left, 0))
        try:
            async with limit:
                yield
        except TimeoutError:
            if limit.expired():
                raise LimitReachedError("wall_seconds", seconds) from None
            raise

    # The ways to end

    async def _on_end(self, sink: StatusSink, error: BaseException | None) -> AgentExecutionStatus:
        if error is None:
            await self._finish(sink, COMPLETED)
            log.info("execution completed", execution_id=self._execution_id)
            return summary(sink.status)
        if isinstance(error, DrainedError):
            await _within(_LAST_WORDS, sink.flush())
            log.info("execution handed over", execution_id=self._execution_id)
            raise drained(str(error)) from None
        if isinstance(error, AgentRunnerError):
            if error.retryable and not self._is_last():
                await self._warn_of_retry(sink, error)
                raise as_failure(error, text=self._text(error)) from None
            log.warning("execution failed", execution_id=self._execution_id, error=self._text(error))
        else:
            log.error("execution failed unexpectedly", execution_id=self._execution_id, exc_info=error)
        await self._finish(sink, FAILED, self._text(error))
        raise final(self._text(error), type(error).__name__) from None

    async def _on_stop(self, sink: StatusSink) -> AgentExecutionStatus:
        """The turn was ended from here: a cancel came by the control plane, or time is up."""
        if sink.cancel_requested:
            await self._finish(sink, CANCELLED, "The execution was cancelled.")
            raise final("The execution was cancelled.", EXECUTION_CANCELLED)
        limit = self._info.start_to_close_timeout
        text = f"The execution took longer than the {limit} one attempt may take."
        await self._finish(sink, FAILED, text)
        raise final(text, EXECUTION_FAILED)

    async def _on_cancel(self, sink: StatusSink) -> None:
        """Temporal ended the activity; what follows depends on why. Returns to pass the cancel on."""
        details = activity.cancellation_details()
        if details is not None and details.cancel_requested:
            await _within(_LAST_WORDS, self._finish(sink, CANCELLED, "The execution was cancelled."))
            log.info("execution cancelled", execution_id=self._execution_id)
        elif details is not None and details.worker_shutdown:
            await _within(_LAST_WORDS, sink.flush())
        # Otherwise Temporal has given the execution to somebody else, or ended it: nothing is ours to say.

    async def _finish(self, sink: StatusSink, phase: ExecutionPhase.ValueType, error: str = "") -> None:
        """Store the end; tried for as long as the attempt has time."""
        if not is_terminal(sink.status.phase):
            sink.emit(ExecutionEvent(phase_changed=PhaseChanged(phase=phase, error=error)))
        try:
            await sink.flush()
        except AgentRunnerError as lost:
            raise self._as_lost(lost) from None

    async def _warn_of_retry(self, sink: StatusSink, error: AgentRunnerError) -> None:
        text = f"Attempt {self._info.attempt} stopped and is tried again: {self._text(error)}"
        sink.emit(ExecutionEvent(warning_raised=WarningRaised(text=text)))
        await _within(_LAST_WORDS, sink.flush())

    def _is_last(self) -> bool:
        """Whether Temporal will not try again; a foreign workflow gives one attempt."""
        policy = self._info.retry_policy
        return policy is not None and 0 < policy.maximum_attempts <= self._info.attempt

    def _as_lost(self, error: BaseException | None) -> ApplicationError:
        """Reporting is impossible: fenced off, ended or deleted. Temporal decides who goes on, if anybody."""
        assert isinstance(error, AgentRunnerError)
        log.warning("execution lost", execution_id=self._execution_id, reason=str(error))
        return as_failure(error, retryable=not isinstance(error, NotFoundError))

    def _text(self, error: BaseException) -> str:
        text = str(error) if isinstance(error, AgentRunnerError) else f"{type(error).__name__}: {error}"
        return short(self._masker.text(text))


@contextlib.asynccontextmanager
async def _drained_on_shutdown(session: AgentSession) -> AsyncIterator[None]:
    """Ask the turn to stop after its super-step when the worker is told to stop."""

    async def wait() -> None:
        await activity.wait_for_worker_shutdown()
        session.request_drain("The worker stops")

    waiting = asyncio.create_task(wait(), name="wait for shutdown")
    try:
        yield
    finally:
        waiting.cancel()


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel the turn and wait until it has let go of everything, but not for ever."""
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=_UNWIND.total_seconds())
    if not done:
        log.error("an agent does not stop; it is left behind")


async def _within(limit: timedelta, work: Awaitable[None]) -> None:
    """Best effort: what does not succeed in time is left to the workflow or the next attempt."""
    try:
        async with asyncio.timeout(limit.total_seconds()):
            await work
    except (TimeoutError, AgentRunnerError, ApplicationError) as error:
        log.warning("last words were not taken", reason=str(error))
