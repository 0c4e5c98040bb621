from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langsmith import run_helpers, tracing_context

from agent_runner.adapters.agents import tracing
from agent_runner.adapters.agents.tracing import trace_when_asked


class Watching(AgentMiddleware[Any, Any, Any]):
    """Notes the task each model call runs in."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[Any] = []

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        self.tasks.append(asyncio.current_task())
        return await handler(request)


class Outer(Watching):
    """The same; an agent takes each kind once."""


async def answer() -> tuple[Watching, Watching]:
    outer, inner = Outer(), Watching()
    agent = create_agent(FakeListChatModel(responses=["Yes."]), middleware=[outer, inner])
    answered = await agent.ainvoke({"messages": [("user", "Is it on?")]})
    assert answered["messages"][-1].content == "Yes."
    return outer, inner


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the hooks LangSmith was asked to trace."""
    names: list[str] = []
    begin = run_helpers._setup_run

    def noting(function: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(function.__qualname__)
        return begin(function, *args, **kwargs)

    monkeypatch.setattr(run_helpers, "_setup_run", noting)
    return names


async def test_hooks_run_in_place_while_nobody_traces(begun: list[str]) -> None:
    trace_when_asked()
    outer, inner = await answer()

    assert begun == []
    assert outer.tasks == inner.tasks


def test_hooks_are_traced_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[str] = []

    def traceable(name: str, **_: Any) -> Any:
        traced.append(name)
        return lambda hook: hook

    monkeypatch.setattr(tracing, "_original", traceable)
    trace_when_asked()
    with tracing_context(enabled=True):
        create_agent(FakeListChatModel(responses=["Yes."]), middleware=[Watching()])

    assert "Watching.awrap_model_call" in traced
