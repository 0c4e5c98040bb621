"""How long a killed runner's execution waits for another one."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import psutil

from agent_runner.client import AgentRunner
from bench.plans import Plan
from bench.product import Processes, client, make_agent
from bench.rows import Floor, Row, most, row_of
from bench.scripts import turn_script
from bench.stacks import add_worker, two_processes, worker_ready

_POLLING = 1.0
"""Seconds until a runner that is ready asks Temporal for work."""
_HEARTBEAT_TIMEOUT = 5.0


async def crash(folder: Path, plan: Plan) -> list[Row]:
    """SIGKILL of the runner that streams; another one goes on."""
    script = turn_script(folder, rounds=0, tokens=20_000, delay_ms=10)
    seconds = []
    async with two_processes(folder / "crash") as processes, client(processes) as runner:
        agent_id = await make_agent(runner, script)
        for number in range(plan.crashes):
            # The runner that is there takes it; only then comes the one that is to take over.
            seconds.append(await _killed(runner, processes, agent_id, f"next-{number}"))
    floor = Floor("heartbeat timeout", _HEARTBEAT_TIMEOUT, "s")
    return [row_of("runner killed -> running on another", seconds, "s", floors=(floor,), budget=most(6.5))]


async def _killed(runner: AgentRunner, processes: Processes, agent_id: str, successor: str) -> float:
    execution = await runner.executions.start("go", agent_id=agent_id)
    [name] = [name for name, child in processes.children.items() if name != "server" and child.poll() is None]
    killed = 0.0
    async for event in runner.executions.watch(execution.metadata.id):
        if not killed and event.WhichOneof("event") == "message_delta":
            add_worker(processes, successor)
            # Its start is not what is measured.
            await worker_ready(processes, successor)
            await asyncio.sleep(_POLLING)
            psutil.Process(processes.children[name].pid).send_signal(signal.SIGKILL)
            killed = time.perf_counter()
        elif killed and event.WhichOneof("event") == "attempt_started":
            break
    taken = time.perf_counter() - killed
    await runner.executions.terminate(execution.metadata.id)
    return taken
