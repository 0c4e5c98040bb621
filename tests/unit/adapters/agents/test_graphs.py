"""A graph kept from one turn serves the next as if it were new."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from contract.agent_bench import Bench, Journal, MemoryCheckpoints

from agent_runner.adapters.agents.deepagents import DeepAgentsFactory
from agent_runner.adapters.models.script import ScriptLibrary
from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.errors import LimitReachedError
from agent_runner.ports.sandboxes import SandboxSpec
from agent_runner.v1.options_pb2 import Limits

WRITE = """
turns:
  - steps:
      - calls: [{name: execute, args: {command: "echo here > mine.txt; ls /workspace"}}]
      - "done: {{last_tool_result}}"
"""


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The specifications graphs were built for."""
    seen: list[Any] = []
    build = DeepAgentsFactory._build

    def watched(self: DeepAgentsFactory, specification: Any, seats: Any) -> Any:
        seen.append(specification)
        return build(self, specification, seats)

    monkeypatch.setattr(DeepAgentsFactory, "_build", watched)
    return seen


async def bench_of(tmp_path: Path, factory: DeepAgentsFactory, session: str) -> Bench:
    sandbox = await LocalProvider(tmp_path / "sandboxes").ensure(SandboxSpec(session_id=session))
    return Bench(factory, sandbox, tmp_path, ScriptLibrary())


async def test_the_next_turn_of_an_agent_takes_the_graph_but_its_own_sandbox_journal_and_model(
    tmp_path: Path, built: list[Any]
) -> None:
    factory = DeepAgentsFactory(MemoryCheckpoints())
    first = await bench_of(tmp_path, factory, "ses-1")
    second = await bench_of(tmp_path, factory, "ses-2")
    one = await first.run(WRITE)
    two = await second.run(WRITE.replace("mine", "other"), turn=second.turn(thread="thread-2"))

    assert len(built) == 1
    assert "mine.txt" in one.status.tool_calls[0].result
    assert "other.txt" in two.status.tool_calls[0].result and "mine" not in two.status.tool_calls[0].result
    assert (len(one.began), len(two.began)) == (1, 1)


async def test_turns_at_the_same_time_have_a_graph_each(tmp_path: Path, built: list[Any]) -> None:
    factory = DeepAgentsFactory(MemoryCheckpoints())
    benches = [await bench_of(tmp_path, factory, f"ses-{number}") for number in range(3)]
    journals = await asyncio.gather(
        *(bench.run(WRITE, turn=bench.turn(thread=f"thread-{n}")) for n, bench in enumerate(benches))
    )

    assert len(built) == 3
    assert all(len(journal.began) == 1 for journal in journals)


async def test_a_limit_of_one_turn_says_nothing_to_the_next(tmp_path: Path, built: list[Any]) -> None:
    factory = DeepAgentsFactory(MemoryCheckpoints())
    bench = await bench_of(tmp_path, factory, "ses-1")
    bench.limits = Limits(tool_calls=1)
    await bench.run(WRITE)
    await bench.run(WRITE, turn=bench.turn(thread="thread-2"))

    assert len(built) == 1


async def test_a_graph_whose_turn_failed_is_not_used_again(tmp_path: Path, built: list[Any]) -> None:
    factory = DeepAgentsFactory(MemoryCheckpoints())
    bench = await bench_of(tmp_path, factory, "ses-1")
    bench.limits = Limits(model_calls=1)
    with pytest.raises(LimitReachedError):
        await bench.run(WRITE, journal=Journal())
    bench.limits = Limits()
    await bench.run(WRITE, turn=bench.turn(thread="thread-2"))

    assert len(built) == 2
