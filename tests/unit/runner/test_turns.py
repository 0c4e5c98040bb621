from __future__ import annotations

import pytest

from agent_runner.adapters.models.resolver import DefaultModelResolver
from agent_runner.errors import ModelError
from agent_runner.runner.turns import model_wishes
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.spec_pb2 import AgentExecutionSpec


def worker(default: str | None = None) -> DefaultModelResolver:
    return DefaultModelResolver({}, default, ollama_models=lambda _: [])


def test_the_execution_names_the_model_before_its_agent() -> None:
    spec, agent = AgentExecutionSpec(), Agent()
    agent.spec.options.model.model_name = "script:demo"
    assert worker().resolve(*model_wishes(spec, agent)).name == "script:demo"
    spec.execution_config.model_name = "nothing:of-the-kind"
    with pytest.raises(ModelError, match="nothing"):
        worker().resolve(*model_wishes(spec, agent))


def test_a_later_attempt_keeps_the_model_of_the_first_one() -> None:
    # Its first worker had a default; this one has none, or another one, and the agent was changed.
    assert worker().resolve(*model_wishes(AgentExecutionSpec(), Agent(), "script:demo")).name == "script:demo"
    agent = Agent()
    agent.spec.options.model.model_name = "nothing:of-the-kind"
    wishes = model_wishes(AgentExecutionSpec(), agent, "script:demo")
    assert worker("nothing:else").resolve(*wishes).name == "script:demo"
