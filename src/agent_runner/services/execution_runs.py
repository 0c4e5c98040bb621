"""Running executions in turn: starting the next one, pausing it, stopping it, telling who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from datetime import timedelta
from typing import Any, Final

import structlog

from agent_runner.domain.phases import is_terminal
from agent_runner.errors import AgentRunnerError, NotFoundError, UnavailableError
from agent_runner.ports.workflows import WorkflowStarter
from agent_runner.services._locks import KeyedLocks
from agent_runner.services.events import EventService
from agent_runner.services.execution_records import CALLER, ExecutionRecord
from agent_runner.services.secret_fields import shown
from agent_runner.services.turns import SessionTurns
from agent_runner.services.watching import WatchService
from agent_runner.v1.events_pb2 import ExecutionEvent, Paused, PhaseChanged
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_IN_PROGRESS,
    ExecutionPhase,
)

log = structlog.get_logger(__name__)

_LOOK: Final = 10
"""How many that wait are looked at in one go, and how often: the first of them mostly is the one."""
_MOST_LOOKS: Final = 50
_CLOSING: Final = timedelta(seconds=5)
"""For the workflow of an execution that was just paused to close."""


class ExecutionRuns:
    """Decides which execution of a session runs, and tells Temporal."""

    def __init__(
        self,
        *,
        turns: SessionTurns,
        events: EventService,
        watches: WatchService,
        workflows: WorkflowStarter,
    ) -> None:
        self._turns = turns
        self._events = events
        self._watches = watches
        self._workflows = workflows
        self._locks = KeyedLocks()
        self._tasks: set[asyncio.Task[object]] = set()

    def lock(self, session_id: str) -> AbstractAsyncContextManager[None]:
        """Held while it is settled who comes next in a session."""
        return self._locks.hold(session_id)

    def ended(self, record: ExecutionRecord) -> None:
        """Start what waits for the turn of an execution that has ended, and see to its caller."""
        self.hand_on(record.session_id)
        if record.caller_waits:
            self._in_background(self.tell_caller(record), f"caller of {record.id}")

    async def told(self, execution_id: str) -> None:
        """Note that whoever waited for the end of an execution was told; nothing when it is gone."""
        with suppress(NotFoundError):
            await self._watches.set_fields(execution_id, {CALLER: "told"})

    async def tell_caller(self, record: ExecutionRecord) -> bool:
        """Have a caller told where no workflow is there to do so."""
        try:
            if await self._workflows.running(record.id):
                return False
            message = record.message()
            await self._workflows.start(
                record.id,
                message.spec.session_id,
                message.spec.agent_id,
                waiting_caller=True,
                again=True,
                only_tell_caller=True,
            )
        except UnavailableError as error:
            log.warning("caller waits for Temporal", execution_id=record.id, error=str(error))
            return False
        return True

    async def aclose(self) -> None:
        """Let what is being started come to its end."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        for task in self._tasks:
            task.cancel()

    # Running in turn; the session's lock is held

    async def take_turns(self, session_id: str, new: AgentExecution | None = None) -> int:
        """Start the session's next execution if none runs; answers how many were started.

        Raises:
            UnavailableError: the new one could not be started. That others could not is logged.
        """
        for _ in range(_MOST_LOOKS):
            waiting = await self._turns.waiting(session_id, limit=_LOOK)
            for record in waiting:
                _record, status, _time = await self._watches.status(record.id)
                if is_terminal(status.phase) or status.phase == EXECUTION_IN_PROGRESS:
                    await self._watches.mended_phase(record)
                    continue  # the index lagged behind
                if await self._has_joined(record):
                    continue
                # A paused one keeps its place, and those behind it wait.
                if status.run.paused or not await self._turns.claim(session_id, record.id, self.has_ended):
                    return 0
                return await self._start_next(record, new)
            if len(waiting) < _LOOK:
                break
        return 0

    async def _start_next(self, record: ExecutionRecord, new: AgentExecution | None) -> int:
        try:
            await self.start(record.message())
        except UnavailableError as error:
            if new is not None and new.metadata.id == record.id:
                raise
            log.warning("execution waits for Temporal", execution_id=record.id, error=str(error))
            return 0
        return 1

    async def _has_joined(self, record: ExecutionRecord) -> bool:
        """Whether the turn of another one has taken the message; then the execution is over."""
        if not record.steers:
            return False
        try:
            _record, status, _time = await self._watches.status(record.steers)
        except NotFoundError:
            return False
        if record.id not in status.run.joined:
            return False
        await self._events.end_joined(record.id, record.steers)
        return True

    async def start(self, execution: AgentExecution, *, again: bool = False) -> None:
        """Start the workflow of an execution that has the turn.

        Args:
            again: also when it has had one.

        Raises:
            WorkflowServiceUnavailableError: nothing was started.
        """
        execution_id, spec = execution.metadata.id, execution.spec
        await self._workflows.start(
            execution_id,
            spec.session_id,
            spec.agent_id,
            waiting_caller=bool(spec.callback_token),
            # What is an argument of a workflow can be read by whoever can see the workflow.
            execution=shown(execution),
            again=again,
        )
        await self._watches.mark_started(execution_id)
        self._watches.wake(spec.session_id)
        log.debug("execution started", execution_id=execution_id, session_id=spec.session_id)

    async def has_ended(self, execution_id: str) -> bool:
        """Whether an execution needs no turn any more."""
        try:
            return is_terminal(await self._watches.phase(execution_id))
        except NotFoundError:
            return True

    def hand_on(self, session_id: str) -> None:
        """Start what waits in a session, in the background."""
        self._in_background(self._next_turn(session_id), f"next turn of {session_id}")

    def _in_background(self, work: Coroutine[Any, Any, object], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _next_turn(self, session_id: str) -> None:
        try:
            async with self.lock(session_id):
                await self.take_turns(session_id)
            self._watches.wake(session_id)
        except AgentRunnerError as error:
            log.warning("next turn waits for the reconciler", session_id=session_id, error=str(error))

    async def pause(self, record: ExecutionRecord) -> None:
        """Pause at once what no runner could be told to; a runner stops after its super-step."""
        async with self.lock(record.session_id):
            holds = await self._turns.holder(record.session_id) == record.id
            if not holds or not await self._workflows.running(record.id):
                await self._events.record(record.id, ExecutionEvent(paused=Paused()))

    async def resume(self, record: ExecutionRecord) -> None:
        """Let an execution that was paused go on.

        Raises:
            UnavailableError: later, when Temporal is back.
        """
        async with self.lock(record.session_id):
            if await self._turns.holder(record.session_id) != record.id:
                await self.take_turns(record.session_id)
                return
            await self._closed(record.id)
            await self.start(record.message(), again=True)

    async def _closed(self, execution_id: str) -> None:
        """Wait for the workflow of a run that stopped a moment ago; the reconciler looks again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING.total_seconds()):
                while await self._workflows.running(execution_id):  # noqa: ASYNC110 (Temporal is asked)
                    await asyncio.sleep(0.05)

    async def stop(self, record: ExecutionRecord, reason: str) -> None:
        """Ask the workflow of an execution to stop; without one, the execution ends at once."""
        async with self.lock(record.session_id):
            await self._stop(record, reason)

    async def _stop(self, record: ExecutionRecord, reason: str) -> None:
        if await self._turns.holder(record.session_id) == record.id:
            try:
                if await self._workflows.cancel(record.id):
                    return
            except UnavailableError as error:
                # The runner is told with its next append, and the reconciler asks again.
                log.warning("cancel waits for Temporal", execution_id=record.id, error=str(error))
                return
        await self.end(record.id, EXECUTION_CANCELLED, reason)

    async def terminate(self, record: ExecutionRecord, reason: str) -> bool:
        """End an execution whatever its runner does; False when it has ended already.

        Raises:
            WorkflowServiceUnavailableError: nothing was done.
        """
        await self._workflows.terminate(record.id, reason)
        return await self.end(record.id, EXECUTION_CANCELLED, reason)

    async def end(self, execution_id: str, phase: ExecutionPhase.ValueType, error: str) -> bool:
        """Log the end of an execution; False when it has ended already."""
        change = PhaseChanged(phase=phase, error=error)
        return await self._events.record(execution_id, ExecutionEvent(phase_changed=change))
