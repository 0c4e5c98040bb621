"""What it costs to be there: starting, memory and CPU of a stack that does nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

from agent_runner.adapters.temporal.managed import ManagedTemporal
from bench.plans import Plan
from bench.product import Processes
from bench.rows import Floor, Row, most, row_of
from bench.stacks import add_worker, control_plane_alone, one_process, worker_ready

_SETTLED = 2.0
"""Seconds after its start in which a stack still has things to do."""
_LIBRARIES = {
    "server": "import grpc, temporalio.worker, apsw",
    "worker": "import grpc, temporalio.worker, deepagents, langchain.agents",
}
"""What the processes cannot do without."""
_REPORT = "; import psutil; print(psutil.Process().memory_info().rss)"


async def start_up(folder: Path, plan: Plan) -> list[Row]:
    """From the command to a stack that serves, and what it then costs to let it stand idle."""
    began = time.perf_counter()
    async with ManagedTemporal(folder / "temporal") as temporal:
        alone = time.perf_counter() - began
        pid = temporal.pid
        floor_cpu = await _idle(folder, plan, pid)
    importing, libraries = await _import("worker")
    seconds = []
    for number in range(plan.starts):
        began = time.perf_counter()
        async with one_process(folder / f"stack-{number}") as processes:
            seconds.append(time.perf_counter() - began)
            if number == plan.starts - 1:
                await asyncio.sleep(_SETTLED)
                memory = processes.memory_mib("stack")
                idle = await _cpu_share(processes, plan.idle_seconds)
    floors = (Floor("Temporal alone", alone, "s"), Floor("importing the engine", importing, "s"))
    cpu_floor = (Floor("Temporal alone", floor_cpu, "%"),)
    return [
        row_of("stack up", seconds, "s", floors=floors, budget=most(3)),
        Row("CPU idle, all processes", idle, "%", floors=cpu_floor, budget=most(1)),
        Row(
            "memory idle, control plane and runner in one process",
            memory,
            "MiB",
            floors=(Floor("the libraries alone", libraries, "MiB"),),
            budget=most(245),
        ),
    ]


async def memory_of_two(folder: Path, plan: Plan) -> list[Row]:
    """Control plane and runner, each in a process of its own, which have had nothing to do yet."""
    rows = []
    async with control_plane_alone(folder / "two") as processes:
        add_worker(processes, "worker")
        await worker_ready(processes, "worker")
        await asyncio.sleep(_SETTLED + plan.idle_seconds)
        for name, role, limit in (("server", "control plane", 100), ("worker", "runner", 145)):
            _, libraries = await _import(name)
            rows.append(
                Row(
                    f"memory idle, {role} in a process of its own",
                    processes.memory_mib(name),
                    "MiB",
                    floors=(Floor("the libraries alone", libraries, "MiB"),),
                    budget=most(limit),
                )
            )
    return rows


async def _idle(folder: Path, plan: Plan, pid: int | None) -> float:
    """Percent of one core that Temporal takes with nothing to do."""
    processes = Processes(folder)
    processes.temporal_pid = pid
    await asyncio.sleep(_SETTLED)
    return await _cpu_share(processes, plan.idle_seconds)


async def _cpu_share(processes: Processes, seconds: float) -> float:
    before, began = processes.cpu_seconds(), time.perf_counter()
    await asyncio.sleep(seconds)
    return (processes.cpu_seconds() - before) / (time.perf_counter() - began) * 100


async def _import(name: str) -> tuple[float, float]:
    """Seconds and MiB of a Python that does nothing but import what a process of ours stands on."""

    def run() -> tuple[float, float]:
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _LIBRARIES[name] + _REPORT], capture_output=True, text=True, check=True
        )
        return time.perf_counter() - began, int(done.stdout) / 2**20

    return await asyncio.to_thread(run)
