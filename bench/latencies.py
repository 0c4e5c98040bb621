"""How long things take for one user: the first event, a turn of three seconds, a cancel."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from temporalio.client import Client

from agent_runner.adapters.temporal.connection import TemporalConnection
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_CANCELLED
from bench.floors import BareLoop, BareTemporal, bare_floor
from bench.plain_temporal import plain_temporal
from bench.plans import Plan
from bench.product import Processes, client, make_agent, run_turn
from bench.rows import Budget, Floor, Row, in_ms, most, quantile, row_of
from bench.scripts import turn_script, usual_turn
from bench.stacks import one_process

# (p50, p95) of create -> first event, in ms.
_FIRST_EVENT = {"one process": (most(40), most(80)), "two processes": (most(60), most(120))}


async def first_event(processes: Processes, folder: Path, plan: Plan) -> list[Row]:
    """Create to the agent's first event, the model needing 5 ms a token."""
    script = turn_script(folder, rounds=0, tokens=10, delay_ms=5)
    no_op = in_ms(await BareTemporal(await temporal(processes)).no_ops(plan.latency_runs))
    loop = BareLoop(script)
    bare = [(await loop.turn()).first_event for _ in range(plan.latency_runs + 1)][1:]
    async with client(processes) as runner:
        agent_id = await make_agent(runner, script)
        for _ in range(3):
            await run_turn(runner, agent_id)
        seen = in_ms([(await run_turn(runner, agent_id)).first_event for _ in range(plan.latency_runs)])
    rows = []
    for share, budget in zip((0.5, 0.95), _FIRST_EVENT[processes.shape], strict=True):
        floors = (bare_floor(bare, share), Floor("no-op workflow", quantile(no_op, share), "ms"))
        name = f"create -> first agent event, {processes.shape}, p{share * 100:.0f}"
        rows.append(row_of(name, seen, "ms", share=share, floors=floors, budget=budget))
    return rows


async def temporal(processes: Processes) -> Client:
    """A client as the product has it, whose workers take cancels as commands."""
    return await TemporalConnection.managed(processes.temporal).client()


async def long_turn(processes: Processes, folder: Path, plan: Plan) -> list[Row]:
    """A turn of 3 s, paired with the bare loop; 20 at once is a line of the load."""
    script = usual_turn(folder, delay_ms=20)
    shares, bare, loop = [], [], BareLoop(script)
    async with client(processes) as runner:
        agent_id = await make_agent(runner, script)
        await asyncio.gather(loop.turn(), run_turn(runner, agent_id))
        for _ in range(plan.pairs):
            bare.append((await loop.turn()).seconds)
            shares.append(((await run_turn(runner, agent_id)).seconds / bare[-1] - 1) * 100)
    name = f"3 s turn above the bare loop, alone, {processes.shape}"
    return [row_of(name, shares, "%", floors=(bare_floor(bare),), budget=most(2))]


async def cancels(processes: Processes, folder: Path, plan: Plan) -> list[Row]:
    """From the cancel call to CANCELLED in the log, the model streaming; with our Temporal and any other."""
    rows = [await _cancels(processes, folder, plan.cancels, "our Temporal", most(100))]
    if plan.other_temporal:
        rows.append(await _cancels_elsewhere(folder, plan))
    return rows


async def _cancels_elsewhere(folder: Path, plan: Plan) -> Row:
    with plain_temporal(folder) as address:
        async with one_process(folder / "plain", temporal=address) as plain:
            few = max(plan.cancels // 2, 2)
            return await _cancels(plain, folder, few, "a Temporal without commands", most(1000))


async def _cancels(processes: Processes, folder: Path, runs: int, which: str, budget: Budget) -> Row:
    bare = in_ms(await BareTemporal(await temporal(processes)).cancels(max(runs // 2, 2)))
    floors = (Floor("cancel of an activity that waits, p95", quantile(bare, 0.95), "ms"),)
    script = turn_script(folder, rounds=0, tokens=5_000, delay_ms=5)
    seconds = []
    async with client(processes) as runner:
        agent_id = await make_agent(runner, script)
        for _ in range(runs):
            execution = await runner.executions.start("go", agent_id=agent_id)
            began = 0.0
            async for event in runner.executions.watch(execution.metadata.id):
                if not began and event.WhichOneof("event") == "message_delta":
                    began = time.perf_counter()
                    await runner.executions.cancel(execution.metadata.id)
                if event.phase_changed.phase == EXECUTION_CANCELLED:
                    seconds.append(time.perf_counter() - began)
    name = f"cancel -> CANCELLED, {which}, p95"
    return row_of(name, in_ms(seconds), "ms", share=0.95, floors=floors, budget=budget)
