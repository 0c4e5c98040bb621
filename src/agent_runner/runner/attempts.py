"""One attempt of a worker at an execution: taken, run, reported, ended in exactly one way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
from collections.abc import Awaitable
from datetime import timedelta

import structlog
from temporalio import activity
from temporalio.exceptions import ApplicationError

from agent_runner.domain.attempts import was_last
from agent_runner.domain.masking import Masker
from agent_runner.domain.status import is_terminal
from agent_runner.errors import (
    AgentRunnerError,
    FailedPreconditionError,
    FencedError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from agent_runner.ports.agents import DrainedError, Turn
from agent_runner.ports.status_sinks import AttemptOf, Grant, StatusSink
from agent_runner.runner.failures import as_failure, drained, final, refused, short, taken_away, uncounted
from agent_runner.runner.patience import patiently
from agent_runner.runner.payloads import EXECUTION_CANCELLED, EXECUTION_FAILED, EXECUTION_PAUSED
from agent_runner.runner.results import summary
from agent_runner.runner.running import Parts, TurnRun
from agent_runner.v1.events_pb2 import (
    ATTEMPT_END_FAILED,
    ATTEMPT_END_HANDED_OVER,
    AttemptEnd,
    AttemptEnded,
    ExecutionEvent,
    Paused,
    PhaseChanged,
    WarningRaised,
)
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
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import ExecutionPhase
from ai.stigmer.agentic.agentexecution.v1.spec_pb2 import AgentExecutionSpec

__all__ = ["Attempt", "Parts", "worker_name"]

log = structlog.get_logger(__name__)

_MARGIN = timedelta(seconds=10)
"""Left of an attempt's time to report how it ended."""
_UNWIND = timedelta(seconds=10)
"""For an agent to let go of model, tools and sandbox when it is stopped."""
_LAST_WORDS = timedelta(seconds=30)
"""For reporting a cancel or a retry, which the workflow makes up for when it does not arrive."""
_HURRIED_WORDS = timedelta(seconds=2)
"""For a worker that is to stop; the engine tells the next attempt what may not have arrived."""


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
        self._began = time.monotonic()
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
                return await self._accounted()
        except asyncio.CancelledError:
            details = activity.cancellation_details()
            if details is not None and details.worker_shutdown:
                raise drained("The worker was stopped") from None
            if details is not None and not details.cancel_requested:
                # Its heartbeats came too late, or somebody has paused or reset it in Temporal itself.
                log.warning("execution taken away", execution_id=self._execution_id)
                raise taken_away() from None
            raise

    async def _accounted(self) -> AgentExecutionStatus:
        try:
            return await self._take_and_run()
        except ApplicationError:
            raise
        except Exception as error:
            log.exception("attempt failed unexpectedly", execution_id=self._execution_id)
            raise uncounted(error, self._text(error), self._info.attempt) from None

    async def _take_and_run(self) -> AgentExecutionStatus:
        try:
            sink, grant = await self._take()
        except FailedPreconditionError:
            return await self._ended_before()
        except (UnauthenticatedError, PermissionDeniedError) as error:
            log.error("this worker's key is refused", execution_id=self._execution_id, reason=str(error))
            raise refused(error) from None
        except AgentRunnerError as error:
            log.warning("execution not taken", execution_id=self._execution_id, reason=str(error))
            # Fenced off: by a later attempt, whose word counts, or for a moment by others who write.
            again = error.retryable or isinstance(error, FencedError)
            raise (uncounted(error, str(error), self._info.attempt) if again else as_failure(error)) from None
        try:
            return await self._run_and_report(sink, grant)
        finally:
            await sink.aclose()

    async def _take(self) -> tuple[StatusSink, Grant]:
        """Take the execution, waiting for as long as the control plane is away."""
        attempt = AttemptOf(
            execution_id=self._execution_id,
            worker=worker_name(),
            workflow_run_id=self._info.workflow_run_id or "",
            activity_attempt=self._info.attempt,
            # A guess: the engine, which knows, can only be asked once the execution is ours.
            resumed=self._info.attempt > 1,
        )
        return await patiently(lambda: self._parts.sinks.open(attempt), self._execution_id)

    async def _ended_before(self) -> AgentExecutionStatus:
        """An earlier attempt stored the end and died before it could say so."""
        try:
            execution = await patiently(
                lambda: self._parts.reader.execution(self._execution_id), self._execution_id
            )
        except AgentRunnerError as error:
            raise as_failure(error) from None
        status = execution.status
        if status.phase == COMPLETED:
            return summary(status)
        kind = EXECUTION_CANCELLED if status.phase == CANCELLED else EXECUTION_FAILED
        raise final(status.error, kind)

    async def _run_and_report(self, sink: StatusSink, grant: Grant) -> AgentExecutionStatus:
        spec = self._spec(grant.execution)
        running = TurnRun(self._parts, sink, grant, spec, self._turn_of(spec, grant.attempt), self._learn)
        turn = asyncio.create_task(running.run(), name=f"turn of {self._execution_id}")
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

    def _turn_of(self, spec: AgentExecutionSpec, attempt: int) -> Turn:
        return Turn(self._execution_id, self._thread_id, spec.message, attempt)

    def _learn(self, masker: Masker) -> None:
        """From here on the secrets are known; they stay out of errors and this process's logs."""
        self._masker = masker
        self._secrets.enter_context(self._parts.secrets.hold(masker))

    def _time_left(self) -> float | None:
        """Seconds until this attempt must be over; None when its time is not limited."""
        limit = self._info.start_to_close_timeout
        if limit is None:
            return None
        margin = min(_MARGIN, limit / 10)
        # By this host's own clock: Temporal's may be another one.
        return (limit - margin).total_seconds() - (time.monotonic() - self._began)

    # The ways to end

    async def _on_end(self, sink: StatusSink, error: BaseException | None) -> AgentExecutionStatus:
        if error is None:
            await self._finish(sink, COMPLETED)
            log.info("execution completed", execution_id=self._execution_id)
            await self._prune()
            return summary(sink.status)
        if isinstance(error, DrainedError):
            if sink.pause_requested:
                await self._pause(sink)
            _let_go(sink, ATTEMPT_END_HANDED_OVER, str(error))
            await _within(_HURRIED_WORDS, sink.flush())
            log.info("execution handed over", execution_id=self._execution_id)
            raise drained(str(error)) from None
        if isinstance(error, AgentRunnerError):
            if error.retryable and not self._is_last(sink):
                await self._warn_of_retry(sink, error)
                raise as_failure(error, text=self._text(error), after=sink.status.run) from None
            log.warning("execution failed", execution_id=self._execution_id, error=self._text(error))
        else:
            log.error("execution failed unexpectedly", execution_id=self._execution_id, exc_info=error)
        await self._finish(sink, FAILED, self._text(error))
        raise final(self._text(error), type(error).__name__) from None

    async def _pause(self, sink: StatusSink) -> None:
        """Say that the turn has stopped. Returns when somebody resumed it meanwhile."""
        sink.emit(ExecutionEvent(paused=Paused()))
        try:
            await sink.flush()
        except AgentRunnerError as lost:
            raise self._as_lost(lost) from None
        if sink.pause_requested:
            log.info("execution paused", execution_id=self._execution_id)
            raise final("The execution is paused.", EXECUTION_PAUSED)

    async def _prune(self) -> None:
        """Drop old checkpoints of the thread; best effort, the next turn does it too."""
        checkpoints, keep = self._parts.checkpoints, self._parts.keep_checkpoints
        if checkpoints is None or not keep:
            return
        try:
            await checkpoints.prune(self._thread_id, keep=keep)
        except AgentRunnerError as error:
            log.warning("checkpoints not pruned", thread_id=self._thread_id, reason=str(error))

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
            _let_go(sink, ATTEMPT_END_HANDED_OVER, "The worker was stopped")
            await _within(_HURRIED_WORDS, sink.flush())
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
        _let_go(sink, ATTEMPT_END_FAILED, self._text(error))
        await _within(_LAST_WORDS, sink.flush())

    def _is_last(self, sink: StatusSink) -> bool:
        """Whether it is not to be tried again; a foreign workflow gives one attempt."""
        policy = self._info.retry_policy
        given_up = policy is not None and 0 < policy.maximum_attempts <= self._info.attempt
        return given_up or was_last(sink.status)

    def _as_lost(self, error: BaseException | None) -> ApplicationError:
        """Reporting is impossible: fenced off, ended or deleted. Temporal decides who goes on, if anybody."""
        assert isinstance(error, AgentRunnerError)
        log.warning("execution lost", execution_id=self._execution_id, reason=str(error))
        return as_failure(error, retryable=not isinstance(error, NotFoundError))

    def _text(self, error: BaseException) -> str:
        text = str(error) if isinstance(error, AgentRunnerError) else f"{type(error).__name__}: {error}"
        return short(self._masker.text(text))


def _let_go(sink: StatusSink, how: AttemptEnd.ValueType, reason: str) -> None:
    """Have the log say that this attempt ended, or it counts as lost with its worker."""
    sink.emit(ExecutionEvent(attempt_ended=AttemptEnded(how=how, reason=reason)))


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
