"""What a turn tells of itself before its agent is there."""

from __future__ import annotations

from typing import Any

import pytest

from agent_runner.domain.masking import MASK, Masker
from agent_runner.errors import NotFoundError, UnauthenticatedError
from agent_runner.ports.agents import Turn
from agent_runner.ports.environments import ResolvedEnvironment
from agent_runner.ports.status_sinks import Grant
from agent_runner.runner.reporting import MaskedReport
from agent_runner.runner.running import Parts, TurnRun
from agent_runner.v1.events_pb2 import ExecutionEvent, MessageDelta
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.spec_pb2 import AgentExecutionSpec

SECRET = "s3cret-value"


class Sink:
    def __init__(self) -> None:
        self.events: list[ExecutionEvent] = []

    def emit(self, event: ExecutionEvent) -> None:
        self.events.append(event)


class NoAgent:
    async def agent(self, name: str) -> Any:
        raise NotFoundError("agent", name)


class Environments:
    def __init__(self, *, known: bool) -> None:
        self._known = known

    async def resolve(self, execution_id: str, attempt: int, token: str) -> ResolvedEnvironment:
        if not self._known:
            raise UnauthenticatedError
        return ResolvedEnvironment({"TOKEN": SECRET}, frozenset({"TOKEN"}), ())


@pytest.mark.parametrize(("known", "shown"), [(True, [f"use {MASK}"]), (False, [])])
async def test_a_message_is_shown_without_its_secrets_or_not_at_all(known: bool, shown: list[str]) -> None:
    sink, learned = Sink(), list[Masker]()
    unused: Any = None
    run = TurnRun(
        Parts(unused, NoAgent(), unused, unused, unused, Environments(known=known)),  # type: ignore[arg-type]
        sink,  # type: ignore[arg-type]
        Grant(1, AgentExecution(), token="token"),
        AgentExecutionSpec(agent_id="gone"),
        Turn("aex-1", "thread-1", f"use {SECRET}"),
        learned.append,
    )
    with pytest.raises((NotFoundError, UnauthenticatedError)):
        await run.run()
    assert [e.message_started.content for e in sink.events if e.HasField("message_started")] == shown
    assert [masker.text(SECRET) for masker in learned] == [MASK] * len(shown)


async def test_a_turn_that_breaks_off_keeps_what_might_have_become_a_secret() -> None:
    sink = Sink()
    report = MaskedReport(sink, Masker([SECRET]))  # type: ignore[arg-type]
    for text in ("half of s3", "cret"):
        report.emit(ExecutionEvent(message_delta=MessageDelta(message_id="m", text=text)))
    report.end()
    assert "".join(event.message_delta.text for event in sink.events) == "half of s3cret"
