"""What is sent to report an execution, and what Temporal keeps of it."""

from __future__ import annotations

from pathlib import Path

from agent_runner.client import AgentRunner
from agent_runner.ports.workflows import workflow_id
from bench.floors import BareTemporal
from bench.latencies import temporal
from bench.plans import Plan
from bench.product import Processes, client, make_agent, run_turn
from bench.proxy import Counter, counting_proxy
from bench.rows import Floor, Row, most
from bench.scripts import turn_script
from bench.stacks import add_worker, control_plane_alone, serves

_LONG_TOKENS = 600_000
"""Some three million characters, in one piece."""


async def bytes_sent(folder: Path, plan: Plan) -> list[Row]:
    """What a runner in a process of its own sends, headers included, against the final state."""
    async with control_plane_alone(folder / "proxied") as processes:
        proxy = counting_proxy(processes.address)
        async with proxy as (address, sent), client(processes) as runner:
            add_worker(processes, "worker", address=address)
            await serves(runner)
            rows = await _weighed(runner, folder, sent, (80, plan.many_tokens))
            return [*rows, await _largest(runner, folder, sent)]


async def _weighed(runner: AgentRunner, folder: Path, sent: Counter, lengths: tuple[int, ...]) -> list[Row]:
    smallest, _, _ = await _sent_by(runner, folder, sent, rounds=0, tokens=1)
    rows = []
    for tokens in lengths:
        weight, size, events = await _sent_by(runner, folder, sent, rounds=4, tokens=tokens)
        rows.append(
            Row(
                f"bytes sent over the final state, {tokens} tokens",
                (weight - smallest) / size,
                "x",
                floors=(Floor("one token", smallest, "bytes"),),
                budget=most(1.5),
                note=f"{events} events, {weight} bytes, final state {size}",
            )
        )
    return rows


async def _largest(runner: AgentRunner, folder: Path, sent: Counter) -> Row:
    """A model that says megabytes at once: they go in several messages."""
    sent.largest = 0
    script = turn_script(folder, rounds=0, tokens=_LONG_TOKENS, delay_ms=0, chunk_tokens=_LONG_TOKENS)
    done = await run_turn(runner, await make_agent(runner, script))
    said = len(done.execution.status.messages[-1].content)
    return Row(
        "largest message from a runner, an answer of 3 MB in one piece",
        sent.largest / 1024,
        "KiB",
        floors=(Floor("the answer", said / 1024, "KiB"),),
        budget=most(1024),
    )


async def _sent_by(
    runner: AgentRunner, folder: Path, sent: Counter, *, rounds: int, tokens: int
) -> tuple[int, int, int]:
    """Bytes the runner sent for an execution, all calls and headers counted; its final size; its events."""
    agent_id = await make_agent(runner, turn_script(folder, rounds=rounds, tokens=tokens, delay_ms=1))
    before = sent.sent
    done = await run_turn(runner, agent_id)
    return sent.sent - before, done.execution.ByteSize(), done.events


async def history(processes: Processes, folder: Path, plan: Plan) -> list[Row]:
    """What a workflow's history weighs, whatever the run did."""
    connected = await temporal(processes)
    floor = Floor("no-op workflow", await BareTemporal(connected).history_bytes() / 1024, "KiB")
    rows = []
    async with client(processes) as runner:
        for rounds in plan.tool_rounds:
            agent_id = await make_agent(runner, turn_script(folder, rounds=rounds, tokens=rounds, delay_ms=0))
            done = await run_turn(runner, agent_id)
            handle = connected.get_workflow_handle(workflow_id(done.execution.metadata.id))
            size = (await handle.describe()).raw_description.workflow_execution_info.history_size_bytes
            name = f"Temporal history after tool rounds: {rounds}"
            rows.append(Row(name, size / 1024, "KiB", floors=(floor,), budget=most(20)))
    return rows
