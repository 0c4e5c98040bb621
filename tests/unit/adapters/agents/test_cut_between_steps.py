"""A worker that dies after the results of a step are kept and before the step's checkpoint is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from contract.agent_bench import Bench, Journal
from langgraph.checkpoint.memory import InMemorySaver

from agent_runner.adapters.agents.deepagents import DeepAgentsFactory
from agent_runner.adapters.models.script import ScriptLibrary
from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.ports.agents import Turn
from agent_runner.ports.sandboxes import SandboxSpec

SCRIPT = """
turns:
  - steps:
      - {text: first, calls: [{name: write_file, args: {file_path: /workspace/a, content: a}}]}
      - {text: second, calls: [{name: write_file, args: {file_path: /workspace/b, content: b}}]}
      - done
"""


class Killed(BaseException):
    pass


class MortalSaver(InMemorySaver):
    """Dies in place of the checkpoint that follows the `die_after`th kept write; from then on it lives."""

    def __init__(self, die_after: int) -> None:
        super().__init__()
        self.kept, self._die_after = 0, die_after

    async def aput_writes(
        self, config: Any, writes: Sequence[Any], task_id: str, task_path: str = ""
    ) -> None:
        self.kept += 1
        await super().aput_writes(config, writes, task_id, task_path)

    async def aput(self, *args: Any, **kwargs: Any) -> Any:
        if 0 < self._die_after <= self.kept:
            self._die_after = 0
            raise Killed
        return await super().aput(*args, **kwargs)


class OneSaver:
    def __init__(self, saver: InMemorySaver) -> None:
        self.saver = saver

    async def hold(self, turn: Turn) -> dict[str, Any]:
        return {}


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[LocalProvider]:
    provider = LocalProvider(tmp_path / "sandboxes")
    yield provider
    await provider.delete("ses-1")
    await provider.aclose()


@pytest.mark.parametrize("die_after", range(1, 16))
async def test_the_turn_goes_on_wherever_it_was_cut(
    provider: LocalProvider, tmp_path: Path, die_after: int
) -> None:
    saver = MortalSaver(die_after)
    sandbox = await provider.ensure(SandboxSpec("ses-1"))
    bench = Bench(DeepAgentsFactory(OneSaver(saver)), sandbox, tmp_path, ScriptLibrary())  # type: ignore[arg-type]
    turn, journal = bench.turn(), Journal()
    try:
        await bench.run(SCRIPT, turn, journal)
    except Killed:
        journal.next_attempt()
        await bench.run(SCRIPT, turn, journal)

    said = [message.content for message in journal.status.messages if not message.streaming]
    assert said == ["first", "second", "done"]
    assert journal.began.count("write_file") == 2
