"""Where the runner reports: our control plane, or any server of the Stigmer API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from agent_runner.ports.agents import RecordedCall, SteeringMessage, ToolJournal
from agent_runner.v1.events_pb2 import ExecutionEvent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus


@dataclass(frozen=True, slots=True)
class AttemptOf:
    """What a worker says when it takes an execution; the fields of `StartAttemptRequest`."""

    execution_id: str
    worker: str
    workflow_run_id: str = ""
    activity_attempt: int = 0
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """What it gets: the fields of `StartAttemptResponse`."""

    attempt: int
    execution: AgentExecution
    calls: dict[str, RecordedCall] = field(default_factory=dict)
    steering: Sequence[SteeringMessage] = ()
    token: str = field(default="", repr=False)


class StatusSink(ToolJournal, Protocol):
    """One attempt's way to report. Every adapter passes `tests/contract/test_status_sink.py`."""

    @property
    def status(self) -> AgentExecutionStatus:
        """The fold of everything emitted so far, on top of the status the attempt began with."""
        ...

    def emit(self, event: ExecutionEvent) -> None:
        """Take an event; it leaves with the next batch. Never blocks, never drops a boundary event."""
        ...

    async def flush(self) -> None:
        """Return when everything emitted is durable.

        Goes on trying for as long as the caller waits.

        Raises:
            AgentRunnerError: as `wait_stop`.
        """
        ...

    @property
    def cancel_requested(self) -> bool:
        """Whether an answer to an append said so."""
        ...

    @property
    def pause_requested(self) -> bool:
        """Whether the newest answer to an append said so."""
        ...

    async def wait_pause(self) -> None:
        """Return when somebody asked to pause; for as long as nobody does, wait."""
        ...

    def steering(self) -> Sequence[SteeringMessage]:
        """Messages that are to join the turn or have joined, as far as answers told of them."""
        ...

    async def wait_stop(self) -> None:
        """Return when somebody asked to cancel; for as long as nobody does, wait.

        Raises:
            FencedError: another attempt holds the execution.
            FailedPreconditionError: the execution has ended.
            NotFoundError: it was deleted.
            AgentRunnerError: nothing can be reported any more, for another reason.
        """
        ...

    async def aclose(self) -> None:
        """Stop sending.

        What could not be sent is kept where `StatusSinks` finds it, if the adapter has such a place.
        """
        ...


class StatusSinks(Protocol):
    """Opens sinks. Which adapter it is follows from what the server knows."""

    async def open(self, attempt: AttemptOf) -> tuple[StatusSink, Grant]:
        """Take the execution.

        What earlier attempts left on this host is delivered before: later it would be refused.

        Raises:
            NotFoundError: no such execution.
            FencedError: a later attempt has it.
            FailedPreconditionError: it has ended.
            UnavailableError: the server cannot be reached; try again.
            AgentRunnerError: it failed; `retryable` says whether that may pass.
        """
        ...

    async def deliver_left(self) -> NoReturn:
        """Deliver what attempts left that nobody takes up again, for as long as this is awaited."""
        ...
