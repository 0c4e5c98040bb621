"""The shapes the product is measured in, from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from agent_runner.adapters.machine.ports import free_port
from agent_runner.adapters.temporal.managed import ManagedTemporal
from agent_runner.bootstrap.data import read_state
from agent_runner.client import AgentRunner
from agent_runner.errors import AgentRunnerError
from bench.product import PRODUCT, Processes, client, make_agent, run_turn
from bench.scripts import turn_script

_READY_WITHIN = 90.0
ALTERED = "bench.altered"
_FORGETFUL = {"BENCH_CHECKPOINTS": "off"}

Shape = contextlib.AbstractAsyncContextManager[Processes]


@contextlib.asynccontextmanager
async def one_process(
    folder: Path, *, program: str = PRODUCT, temporal: str = "", **environment: str
) -> AsyncIterator[Processes]:
    """`agent-runner up`: control plane and runner in one process, Temporal its child.

    Args:
        program: another module that takes the same commands.
        temporal: address of a Temporal that runs already.
    """
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    processes = Processes(folder)
    if temporal:
        environment["TEMPORAL_ADDRESS"] = temporal
    child = processes.spawn("stack", "up", "--port", "0", "--quiet", program=program, **environment)
    try:
        deadline = time.monotonic() + _READY_WITHIN
        while (state := read_state(processes.data / "stack.json")) is None:
            if child.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((folder / "stack.log").read_text())
            await asyncio.sleep(0.005)
        processes.address, processes.temporal = state["address"], state["temporal"]
        yield processes
    finally:
        await asyncio.to_thread(processes.stop)


@contextlib.asynccontextmanager
async def control_plane_alone(folder: Path) -> AsyncIterator[Processes]:
    """`agent-runner server` and a Temporal of its own; nobody takes executions."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    async with ManagedTemporal(folder / "temporal") as temporal:
        processes = Processes(folder)
        processes.temporal, processes.temporal_pid = temporal.address, temporal.pid
        processes.address = f"127.0.0.1:{free_port()}"
        try:
            processes.spawn(
                "server", "server", "--listen", processes.address, TEMPORAL_ADDRESS=temporal.address
            )
            await _answers(processes)
            yield processes
        finally:
            await asyncio.to_thread(processes.stop)


@contextlib.asynccontextmanager
async def two_processes(
    folder: Path, *, program: str = PRODUCT, **environment: str
) -> AsyncIterator[Processes]:
    """`server` and `worker`; `program` and `environment` are the worker's."""
    async with control_plane_alone(folder) as processes:
        add_worker(processes, "worker", program=program, **environment)
        async with client(processes) as runner:
            await serves(runner)
        yield processes


def one_process_without_checkpoints(folder: Path) -> Shape:
    """The same as `one_process`, but agents remember nothing."""
    return one_process(folder, program=ALTERED, **_FORGETFUL)


def two_processes_without_checkpoints(folder: Path) -> Shape:
    """The same as `two_processes`, but agents remember nothing."""
    return two_processes(folder, program=ALTERED, **_FORGETFUL)


def add_worker(
    processes: Processes, name: str, *, address: str = "", program: str = PRODUCT, **environment: str
) -> None:
    """Run one more worker; `address` is that of a proxy before the control plane."""
    processes.spawn(
        name,
        "worker",
        "--address",
        address or processes.address,
        program=program,
        TEMPORAL_ADDRESS=processes.temporal,
        **environment,
    )


async def worker_ready(processes: Processes, name: str) -> None:
    """Return when a worker that was just run says that it is ready.

    Raises:
        SystemExit: it ended, or took too long; with its log.
    """
    log, deadline = processes.folder / f"{name}.log", time.monotonic() + _READY_WITHIN
    while "runner is ready" not in (text := await asyncio.to_thread(log.read_text)):
        if processes.children[name].poll() is not None or time.monotonic() > deadline:
            raise SystemExit(text)
        await asyncio.sleep(0.05)


async def serves(runner: AgentRunner) -> None:
    """Return when a first execution has gone through.

    Raises:
        TurnFailedError: it failed, so that others would as well.
    """
    with tempfile.TemporaryDirectory() as scratch:
        script = turn_script(Path(scratch), rounds=0, tokens=1, delay_ms=0)
        async with asyncio.timeout(_READY_WITHIN):
            while True:
                try:
                    await run_turn(runner, await make_agent(runner, script))
                    return
                except AgentRunnerError:
                    await asyncio.sleep(0.1)


async def _answers(processes: Processes) -> None:
    async with asyncio.timeout(_READY_WITHIN), client(processes) as runner:
        while True:
            try:
                await runner.server_info()
                return
            except AgentRunnerError:
                if processes.children["server"].poll() is not None:
                    raise SystemExit((processes.folder / "server.log").read_text()) from None
                await asyncio.sleep(0.02)
