"""A bench to run agents on: a scripted model, a sandbox, a journal that remembers over attempts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver

from agent_runner.adapters.agents.model_calls import RetryPolicy
from agent_runner.adapters.models.script import ScriptLibrary
from agent_runner.domain.status import StatusFold
from agent_runner.ports.agents import (
    AgentFactory,
    AgentSpecification,
    Checkpoints,
    NoResultsKept,
    RecordedCall,
    ResultKeeper,
    SteeringMessage,
    SubAgentSpecification,
    Turn,
    unmasked,
)
from agent_runner.ports.models import Model
from agent_runner.ports.sandboxes import Sandbox
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.options_pb2 import Limits
from agent_runner.v1.status_pb2 import Usage
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus

QUICK = RetryPolicy(attempts=3, first_delay=0.01)


class MemoryCheckpoints(Checkpoints):
    def __init__(self) -> None:
        self._saver = InMemorySaver()

    @property
    def saver(self) -> Any:
        return self._saver

    async def hold(self, turn: Turn) -> dict[str, Any]:
        return {}


def _deepagents(checkpoints: Checkpoints) -> AgentFactory:
    from agent_runner.adapters.agents.deepagents import DeepAgentsFactory

    return DeepAgentsFactory(checkpoints, retries=QUICK)


def _graphton(checkpoints: Checkpoints) -> AgentFactory:
    from agent_runner.adapters.agents.graphton import GraphtonFactory

    return GraphtonFactory(checkpoints, retries=QUICK)


# Graphton and today's deepagents cannot share an environment: the suite runs on what is installed.
ENGINES: dict[str, Callable[[Checkpoints], AgentFactory]] = (
    {"graphton": _graphton} if find_spec("graphton") else {"deepagents": _deepagents}
)


@dataclass
class Journal:
    """One execution's log, over its attempts; a `ToolJournal` that is durable at once."""

    events: list[ExecutionEvent] = field(default_factory=list)
    calls: dict[str, RecordedCall] = field(default_factory=dict)
    began: list[str] = field(default_factory=list)
    on_begin: Callable[[ExecutionEvent], None] = lambda event: None
    on_finish: Callable[[ExecutionEvent], None] = lambda event: None

    def recorded(self, tool_call_id: str) -> RecordedCall | None:
        return self.known.get(tool_call_id)

    def __post_init__(self) -> None:
        self.known: dict[str, RecordedCall] = {}

    def next_attempt(self) -> None:
        self.known = dict(self.calls)
        self.on_begin = self.on_finish = lambda event: None

    async def begin(self, event: ExecutionEvent) -> None:
        self.on_begin(event)
        self.take(event)
        await asyncio.sleep(0)

    async def finish(self, event: ExecutionEvent) -> None:
        self.on_finish(event)
        self.take(event)
        await asyncio.sleep(0)

    def take(self, event: ExecutionEvent) -> None:
        """Log an event, whichever way it came."""
        self.events.append(event)
        if event.HasField("tool_call_started"):
            call = event.tool_call_started
            self.began.append(call.name)
            self.calls[call.tool_call_id] = RecordedCall(finished=False)
        elif event.HasField("tool_call_failed"):
            failed = event.tool_call_failed
            self.calls[failed.tool_call_id] = RecordedCall(True, True, failed.error)
        elif event.HasField("tool_call_completed"):
            done = event.tool_call_completed
            self.calls[done.tool_call_id] = RecordedCall(True, False, done.result)

    @property
    def status(self) -> AgentExecutionStatus:
        folding = StatusFold(AgentExecutionStatus())
        for event in self.events:
            folding.apply(event)
        return folding.status

    def kinds(self) -> list[str]:
        return [str(event.WhichOneof("event")) for event in self.events]


@dataclass
class Bench:
    """An engine with a thread, a sandbox and a folder for scripts."""

    factory: AgentFactory
    sandbox: Sandbox
    folder: Path
    library: ScriptLibrary
    turns: int = 0
    tools: Sequence[Any] = ()
    sub_agents: Sequence[SubAgentSpecification] = ()
    limits: Limits = field(default_factory=Limits)
    used: Usage = field(default_factory=Usage)
    used_tool_calls: int = 0
    mask: Callable[[Any], Any] = unmasked
    results: ResultKeeper = field(default_factory=NoResultsKept)
    steering: Sequence[SteeringMessage] = ()
    script_text: str = ""

    def turn(self, message: str = "go", thread: str = "thread-1") -> Turn:
        self.turns += 1
        return Turn(f"execution-{self.turns}", thread, message)

    @asynccontextmanager
    async def session(self, script: str, journal: Journal) -> AsyncIterator[Any]:
        path = self.folder / "script.yaml"
        if script != self.script_text:
            path.write_text(script)
            self.script_text = script
            self.library = ScriptLibrary()
        specification = AgentSpecification(
            name="tester",
            instructions="MAIN agent",
            model=Model("script:test", self.library.open(str(path))),
            sandbox=self.sandbox,
            tools=self.tools,
            sub_agents=self.sub_agents,
            limits=self.limits,
            used=self.used,
            used_tool_calls=self.used_tool_calls,
            mask=self.mask,
            results=self.results,
            steering=lambda: self.steering,
        )
        async with self.factory.open(specification, journal) as session:
            yield session

    async def run(self, script: str, turn: Turn | None = None, journal: Journal | None = None) -> Journal:
        journal = journal or Journal()
        async with self.session(script, journal) as session:
            async for event in session.run(turn or self.turn()):
                journal.take(event)
        return journal
