"""Real client libraries against a local server of the providers' protocols."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from contract.agent_bench import Bench, Journal, MemoryCheckpoints
from unit.adapters.models.protocol_server import ProtocolServer, serving

from agent_runner.adapters.agents.deepagents import DeepAgentsFactory
from agent_runner.adapters.agents.model_calls import RetryPolicy
from agent_runner.adapters.models.resolver import DefaultModelResolver
from agent_runner.adapters.models.script import ScriptLibrary
from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.errors import LimitReachedError, ModelError, ModelUnavailableError
from agent_runner.ports.agents import AgentSpecification
from agent_runner.ports.models import Model
from agent_runner.ports.sandboxes import SandboxSpec
from agent_runner.v1.options_pb2 import Limits, ModelOptions
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import TOOL_CALL_COMPLETED

OPENAI, ANTHROPIC = "openai:gpt-4o", "anthropic:claude-sonnet-5"
# The client speaks the newer protocol with this one.
RESPONSES = "openai:gpt-6-sol"
CLIENTS = [OPENAI, RESPONSES, ANTHROPIC]

TOOLS = """
turns:
  - steps:
      - text: "Ich schreibe, größer als vorher."
        calls:
          - {name: write_file, args: {file_path: /workspace/ä.txt, content: "grüße\\n"}}
          - {name: execute, args: {command: "echo two"}}
        usage: {input: 1000, output: 50, cached: 400}
      - text: "Done: {{last_tool_result}}"
        usage: {input: 2000, output: 20, cached: 1500}
"""


@asynccontextmanager
async def bench_with(script: str, tmp_path: Path) -> AsyncIterator[tuple[Bench, ProtocolServer]]:
    provider = LocalProvider(tmp_path / "sandboxes")
    sandbox = await provider.ensure(SandboxSpec(session_id="ses-1"))
    path = tmp_path / "script.yaml"
    path.write_text(script)
    factory = DeepAgentsFactory(MemoryCheckpoints(), retries=RetryPolicy(attempts=3, first_delay=0.01))
    try:
        async with serving(ScriptLibrary().open(str(path))) as server:
            yield Bench(factory, sandbox, tmp_path, ScriptLibrary()), server
    finally:
        await provider.delete("ses-1")
        await provider.aclose()


def model_of(name: str, server: ProtocolServer, **options: Any) -> Model:
    return DefaultModelResolver(server.environ).resolve(ModelOptions(model_name=name, **options))


async def run(bench: Bench, model: Model, limits: Limits | None = None) -> Journal:
    journal = Journal()
    specification = AgentSpecification("a", "MAIN", model, bench.sandbox, limits=limits or Limits())
    async with bench.factory.open(specification, journal) as session:
        async for event in session.run(bench.turn()):
            journal.events.append(event)
    return journal


@pytest.mark.parametrize("name", CLIENTS)
async def test_an_agent_works_with_tools_through_the_client(name: str, tmp_path: Path) -> None:
    async with bench_with(TOOLS, tmp_path) as (bench, server):
        model = model_of(name, server, temperature=0.5, max_output_tokens=321)
        journal = await run(bench, model)
        found, _ = (await bench.sandbox.get(["/workspace/ä.txt"]))[0]
    assert found == "grüße\n".encode()
    status = journal.status
    assert status.messages[0].content == "Ich schreibe, größer als vorher."
    assert status.messages[1].content.startswith("Done: ")
    assert [c.status for c in status.tool_calls] == [TOOL_CALL_COMPLETED] * 2
    assert journal.kinds().count("message_delta") > 4
    usage = status.run.usage
    assert (usage.input_tokens, usage.output_tokens, usage.model_calls) == (3000, 70, 2)
    assert usage.cached_input_tokens == 1900
    price = {OPENAI: 1100 * 2.5 + 1900 * 1.25 + 70 * 10, ANTHROPIC: 1100 * 2 + 1900 * 0.2 + 70 * 10}
    assert usage.cost_usd == pytest.approx(price.get(name, price[ANTHROPIC]) / 1e6)
    asked = server.requests[0]
    assert asked["temperature"] == 0.5
    limits = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    assert 321 in [asked.get(limit) for limit in limits]


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("no_key", ModelError, "does not accept the key. Check (OPENAI|ANTHROPIC)_API_KEY"),
        ("no_credit", ModelError, "no credit or quota left"),
        ("unknown_model", ModelError, "does not know the model"),
        ("too_long", ModelError, "too long for"),
        ("rate_limit", ModelUnavailableError, "is busy"),
        ("overloaded", ModelUnavailableError, "cannot be reached"),
        ("unavailable", ModelUnavailableError, "cannot be reached"),
        ("dropped", ModelUnavailableError, "cannot be reached"),
    ],
)
async def test_the_providers_errors_are_told_in_plain_words(
    name: str, kind: str, error: type[Exception], words: str, tmp_path: Path
) -> None:
    script = f"turns: [{{steps: [{{text: a b c, fail: {{kind: {kind}}}}}]}}]"
    async with bench_with(script, tmp_path) as (bench, server):
        with pytest.raises(ModelError, match=words) as raised:
            await run(bench, model_of(name, server))
    assert type(raised.value) is error
    assert "SECRET" not in str(raised.value)
    tries = 3 if error is ModelUnavailableError else 1
    assert kind == "too_long" or len(server.requests) == tries


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("after_tokens", [0, 2])
async def test_a_stream_that_breaks_is_asked_again(name: str, after_tokens: int, tmp_path: Path) -> None:
    script = (
        "turns: [{steps: [{text: one two three four, chunk_tokens: 1,"
        f" fail: {{kind: dropped, times: 1, after_tokens: {after_tokens}}}}}]}}]"
    )
    async with bench_with(script, tmp_path) as (bench, server):
        journal = await run(bench, model_of(name, server))
    assert [m.content for m in journal.status.messages] == ["one two three four"]
    assert len(server.requests) == 2


@pytest.mark.parametrize("name", CLIENTS)
async def test_the_wait_the_provider_asks_for_is_kept(name: str, tmp_path: Path) -> None:
    script = "turns: [{steps: [{text: ok, fail: {kind: rate_limit, times: 1, retry_after: 0.4}}]}]"
    async with bench_with(script, tmp_path) as (bench, server):
        journal = await run(bench, model_of(name, server))
    assert journal.status.messages[0].content == "ok"
    assert server.times[1] - server.times[0] >= 0.4
    assert any("busy" in warning for warning in journal.status.run.warnings)


async def test_a_wait_too_long_is_left_to_a_later_attempt(tmp_path: Path) -> None:
    script = "turns: [{steps: [{text: ok, fail: {kind: rate_limit, retry_after: 3600}}]}]"
    async with bench_with(script, tmp_path) as (bench, server):
        with pytest.raises(ModelUnavailableError, match="busy"):
            await run(bench, model_of(OPENAI, server))
    assert len(server.requests) == 1


async def test_the_limit_in_dollars_counts_the_known_price(tmp_path: Path) -> None:
    async with bench_with(TOOLS, tmp_path) as (bench, server):
        with pytest.raises(LimitReachedError, match="cost_usd"):
            await run(bench, model_of(ANTHROPIC, server), Limits(cost_usd=0.001))
    assert len(server.requests) == 1
