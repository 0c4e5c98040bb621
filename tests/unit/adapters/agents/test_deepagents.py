"""What only the adapter of deepagents promises."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from contract.agent_bench import Bench, Journal, MemoryCheckpoints

from agent_runner.adapters.agents.deepagents import DeepAgentsFactory
from agent_runner.adapters.models.script import ScriptLibrary
from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.errors import LimitReachedError
from agent_runner.ports.sandboxes import SandboxSpec


async def bench_with(factory: DeepAgentsFactory, tmp_path: Path) -> Bench:
    sandbox = await LocalProvider(tmp_path / "sandboxes").ensure(SandboxSpec(session_id="ses-1"))
    return Bench(factory, sandbox, tmp_path, ScriptLibrary())


async def test_the_step_limit_is_the_calls_own_and_ends_the_turn_by_name(tmp_path: Path) -> None:
    bench = await bench_with(DeepAgentsFactory(MemoryCheckpoints(), recursion_limit=12), tmp_path)
    calls = ", ".join(f"{{calls: [{{name: ls, args: {{path: /workspace/{n}}}}}]}}" for n in range(40))
    journal = Journal()
    with pytest.raises(LimitReachedError, match="steps = 12"):
        await bench.run(f"turns: [{{steps: [{calls}]}}]", journal=journal)
    assert 3 <= len(journal.began) <= 6
    assert journal.status.messages


async def test_graphs_are_built_off_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    build = DeepAgentsFactory._build

    def watched(self: DeepAgentsFactory, *args: Any) -> Any:
        threads.append(threading.current_thread())
        return build(self, *args)

    monkeypatch.setattr(DeepAgentsFactory, "_build", watched)
    bench = await bench_with(DeepAgentsFactory(MemoryCheckpoints()), tmp_path)
    await bench.run("turns: [{steps: [hi]}]")
    assert threads
    assert threading.main_thread() not in threads
