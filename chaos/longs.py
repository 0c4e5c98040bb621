"""A long run and a large output: history stays small, memory flat."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from temporalio.client import Client

from agent_runner.client import AgentRunner
from agent_runner.domain.phases import phase_word
from agent_runner.ports.workflows import workflow_id
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED
from chaos.clusters import Cluster, cluster
from chaos.loads import Load
from chaos.reports import say
from chaos.scripts import EFFECTS, execute, write_script

MOST_HISTORY = 20 << 10
MOST_GROWTH_MIB = 150.0
"""Of a process over the run: buffers of one large output and the conversation itself, but no copies."""


class Memory:
    """Watches the memory of the processes."""

    def __init__(self, made: Cluster) -> None:
        self._made = made
        self.first: dict[str, float] = {}
        self.most: dict[str, float] = {}

    async def watch(self) -> None:
        while True:
            for name in ("server", *self._made.workers, "temporal"):
                now = self._made.memory_mib(name)
                self.first.setdefault(name, now)
                self.most[name] = max(now, self.most.get(name, 0))
            await asyncio.sleep(0.2)


async def long(folder: Path, *, seed: int, rounds: int, megabytes: int) -> list[str]:
    async with cluster(folder, workers=1) as made:
        load = Load(f"{seed:x}-{int(time.time()):x}")
        many: list[dict[str, object]] = [_round(number) for number in range(rounds)] + [{"text": "Done."}]
        size = megabytes * 1_000_000
        large: list[dict[str, object]] = [
            {"calls": [execute(f"head -c {size} /dev/zero | tr '\\0' x | fold -w 100")]},
            {"text": "Seen."},
        ]
        problems: list[str] = []
        async with AgentRunner(made.address, org="local") as runner:
            await _run(made, load, runner, folder, "warm-up", large[1:], [])
            for name, steps in ((f"{rounds} tool rounds", many), (f"output of {megabytes} MB", large)):
                await _run(made, load, runner, folder, name, steps, problems)
        return problems


def _round(number: int) -> dict[str, object]:
    return {"text": f"Step {number}. ", "calls": [execute(f"echo 'step {number}' >> {EFFECTS}")]}


async def _run(
    made: Cluster,
    load: Load,
    runner: AgentRunner,
    folder: Path,
    name: str,
    steps: list[dict[str, object]],
    problems: list[str],
) -> None:
    script = write_script(folder / f"{name.replace(' ', '-')}.yaml", [{"steps": steps}], 0)
    agent = await load.make_agent(runner, script)
    memory = Memory(made)
    watching = asyncio.create_task(memory.watch())
    began = time.monotonic()
    execution = await runner.executions.start("go", agent_id=agent)
    events = 0
    async for _ in runner.executions.watch(execution.metadata.id):
        events += 1
    seconds = time.monotonic() - began
    final = await runner.executions.get(execution.metadata.id)
    watching.cancel()
    history = await _history(made, execution.metadata.id)
    say(
        f"{name}: {phase_word(final.status.phase)} after {seconds:.1f} s, {events} events, "
        f"{len(final.status.tool_calls)} tool calls, status {final.ByteSize() / 1024:.0f} KiB, "
        f"history {history / 1024:.1f} KiB"
    )
    for process, most in memory.most.items():
        say(f"  memory of {process}: {memory.first[process]:.0f} MiB, at most {most:.0f} MiB")
    problems += _judge(name, final, history, memory)


def _judge(name: str, final: AgentExecution, history: int, memory: Memory) -> list[str]:
    problems = []
    if final.status.phase != EXECUTION_COMPLETED:
        problems.append(f"{name}: {phase_word(final.status.phase)}: {final.status.error}")
    if history > MOST_HISTORY:
        problems.append(f"{name}: history has {history} bytes")
    for process, most in memory.most.items():
        growth = most - memory.first[process]
        if growth > MOST_GROWTH_MIB:
            problems.append(f"{name}: {process} grew by {growth:.0f} MiB")
    return problems


async def _history(made: Cluster, execution_id: str) -> int:
    client = await Client.connect(made.temporal.address)
    described = await client.get_workflow_handle(workflow_id(execution_id)).describe()
    return int(described.raw_description.workflow_execution_info.history_size_bytes)
