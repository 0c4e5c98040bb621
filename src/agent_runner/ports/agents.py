"""Making an agent and running one turn of it, whatever engine does it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from agent_runner.domain.tool_results import shortened
from agent_runner.ports.models import Model
from agent_runner.ports.sandboxes import Sandbox
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.options_pb2 import Limits
from agent_runner.v1.status_pb2 import Usage


def unmasked(value: Any) -> Any:
    """For agents without secrets: the value as it is."""
    return value


@dataclass(frozen=True, slots=True)
class SubAgentSpecification:
    """A sub-agent the agent may hand work to, by the `task` tool."""

    name: str
    description: str
    instructions: str
    tools: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class SteeringMessage:
    """A message that is to join the turn before its next model call.

    Attributes:
        execution_id: of the execution it was sent as.
    """

    execution_id: str
    text: str = field(repr=False)


def unsteered() -> Sequence[SteeringMessage]:
    """For turns nobody steers."""
    return ()


@dataclass(frozen=True, slots=True)
class ShownResult:
    """What an event says of a tool's result, or of its error.

    Attributes:
        text: at most 256 KiB.
        artifact_key: where it is kept whole; empty: it is whole already, or the rest is lost.
    """

    text: str = field(repr=False)
    artifact_key: str = ""


class ResultKeeper(Protocol):
    """What becomes of results that are too long for an event."""

    async def shown(self, tool_call_id: str, text: str) -> ShownResult:
        """Keep a result, where it is too long, and say what the event shows.

        Raises:
            FencedError: another attempt has the execution.
        """
        ...

    async def whole(self, tool_call_id: str, shown: str) -> str:
        """What a tool gave in an earlier attempt, of which the log shows this; as much as can be had."""
        ...


class NoResultsKept:
    """A `ResultKeeper` that cuts what is too long."""

    async def shown(self, tool_call_id: str, text: str) -> ShownResult:
        return ShownResult(shortened(text))

    async def whole(self, tool_call_id: str, shown: str) -> str:
        return shown


@dataclass(frozen=True, slots=True)
class AgentSpecification:
    """Everything an engine needs to make an agent.

    Attributes:
        name: the agent's slug, for logs and traces.
        instructions: the whole system prompt: the agent's own and the skills section.
        model: fresh for this execution.
        sandbox: where file tools and `execute` work.
        tools: LangChain tools beyond those, such as from MCP servers.
        limits: what the turn may use; counted over sub-agents too. `wall_seconds` is the runner's.
        used: what earlier attempts of the execution used of the limits: tokens, dollars, model calls.
        used_tool_calls: and how many tool calls they began.
        mask: takes the secrets out of text, also inside mappings and lists. Applied to what a tool gives
            before the model, the journal and the checkpoints get it.
        results: where results go that are too long for an event.
        steering: messages that are to join the turn, also those that have joined, oldest first; asked
            before each model call of the agent itself.
    """

    name: str
    instructions: str
    model: Model
    sandbox: Sandbox
    tools: Sequence[Any] = ()
    sub_agents: Sequence[SubAgentSpecification] = ()
    limits: Limits = field(default_factory=Limits)
    used: Usage = field(default_factory=Usage)
    used_tool_calls: int = 0
    mask: Callable[[Any], Any] = unmasked
    results: ResultKeeper = field(default_factory=NoResultsKept)
    steering: Callable[[], Sequence[SteeringMessage]] = unsteered


@dataclass(frozen=True, slots=True)
class Turn:
    """One message to the agent.

    Attributes:
        execution_id: kept in the metadata of each checkpoint, so that a later attempt knows its turn.
        thread_id: the conversation it belongs to.
        attempt: which one of the execution runs it.
    """

    execution_id: str
    thread_id: str
    message: str = field(repr=False)
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """What the journal knows of a tool call: finished with a result, or cut off."""

    finished: bool
    failed: bool = False
    result: str = ""


class ToolJournal(Protocol):
    """Makes tool effects happen once. The runner's event sender is one."""

    def recorded(self, tool_call_id: str) -> RecordedCall | None:
        """What an earlier attempt logged of this call; None when it never began."""
        ...

    async def begin(self, event: ExecutionEvent) -> None:
        """Log `tool_call_started`; returns when it is durable, before the tool may run.

        Once it is known that somebody asked to cancel, or that the execution has ended, it does not return:
        whoever waits is about to be cancelled.

        Raises:
            FencedError: another attempt has the execution; the tool must not run.
        """
        ...

    async def finish(self, event: ExecutionEvent) -> None:
        """Log `tool_call_completed` or `tool_call_failed`; returns when it is durable."""
        ...


class AgentSession(Protocol):
    """One agent, ready for one turn."""

    async def unfinished(self, turn: Turn) -> bool:
        """Whether a checkpoint of this very turn is there to go on from."""
        ...

    def run(self, turn: Turn) -> AsyncIterator[ExecutionEvent]:
        """Run the turn, or go on with it where a checkpoint of it is there.

        Yields events of our vocabulary without `seq`, `attempt` and `time`: messages, todos,
        sub-agents, usage, warnings, output of tools that still run, and the calls of tools that may run
        again without harm. Calls of other tools are not yielded: they go to the journal, which knows
        them before the tool runs. What was yielded must have been taken in before the next is asked
        for: a call begins in the journal only when all that comes before it has been. Ends when the
        agent has answered.

        Raises:
            ModelError: the model failed for good.
            ModelUnavailableError: after our own retries; the turn can be gone on with.
            LimitReachedError: a limit ended the turn.
            FencedError, UnavailableError: from the journal or the sandbox, as they came.
            DrainedError: after `request_drain`.
        """
        ...

    def request_drain(self, reason: str) -> None:
        """Stop after the current super-step; `run` then raises DrainedError."""
        ...


class DrainedError(Exception):
    """The turn stopped at a checkpoint because it was asked to; another worker goes on with it."""


class AgentFactory(Protocol):
    """Makes agents. Every engine passes `tests/contract/test_agents.py`."""

    @property
    def engine(self) -> str:
        """`deepagents` or `graphton`, and its version."""
        ...

    def open(
        self, specification: AgentSpecification, journal: ToolJournal
    ) -> AbstractAsyncContextManager[AgentSession]:
        """Build the agent off the event loop; leaving the context lets go of it."""
        ...


class Checkpoints(Protocol):
    """What is remembered between turns. The adapter also is the engine's LangGraph saver."""

    @property
    def saver(self) -> Any:
        """A `BaseCheckpointSaver`."""
        ...

    async def hold(self, turn: Turn) -> Mapping[str, Any]:
        """Take the turn's conversation for its attempt.

        From here on what others write to it is refused with UnavailableError: a worker that was taken for
        dead and comes back would have the agent forget what was said since.

        Returns:
            What a call's `configurable` must have beside the thread to write.

        Raises:
            FencedError: a later attempt of the execution has it.
        """
        ...

    async def prune(self, thread_id: str, *, keep: int) -> int:
        """Drop all but the newest `keep` checkpoints of a thread; returns how many went."""
        ...

    async def delete(self, thread_id: str) -> None: ...

    async def aclose(self) -> None: ...


Metadata = Mapping[str, str]
