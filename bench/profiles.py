"""Where the CPU of a turn goes, by package, beside the bare loop's: why a budget is missed."""

from __future__ import annotations

import asyncio
import cProfile
import marshal
import re
import signal
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.floors import BareLoop
from bench.loads import bare_runs, our_runs, run_round
from bench.plans import Plan
from bench.product import client, make_agent
from bench.rows import Floor, Row
from bench.scripts import usual_turn
from bench.stacks import ALTERED, one_process

PROFILE = "BENCH_PROFILE"
_SHOWN = 16
_DUMP_WITHIN = 30.0

Stats = Mapping[Any, Any]
"""As `marshal` has them: (file, line, function) to (calls, calls, own time, time, the same by caller)."""


def profile_on_signal(path: Path) -> None:
    """Profile this thread's CPU between a first SIGUSR1 and a second one, which writes the file."""
    profiler = cProfile.Profile(time.thread_time)
    running = False

    def toggle(*_: object) -> None:
        nonlocal running
        running = not running
        if running:
            profiler.enable()
        else:
            profiler.disable()
            part = path.with_suffix(".part")
            profiler.dump_stats(part)
            part.rename(path)

    signal.signal(signal.SIGUSR1, toggle)


async def profile(folder: Path, plan: Plan) -> list[Row]:
    """Executions at once, the model taking no time: own time by package, ms a turn, in one process.

    The profiler makes all of it slower, small functions most: the shares count, not the sums. Threads of
    the store, of gRPC and of the Temporal SDK, which are not Python's, are not in it.
    """
    script, path = usual_turn(folder, delay_ms=0), folder / "profile"
    executions, at_once = plan.executions, plan.concurrency
    stack = one_process(folder / "stack", program=ALTERED, **{PROFILE: str(path)})
    async with stack as processes, client(processes) as runner:
        ours, alone = our_runs(runner, await make_agent(runner, script)), bare_runs(BareLoop(script))
        await run_round(ours, at_once, at_once)
        child = processes.children["stack"]
        child.send_signal(signal.SIGUSR1)
        await run_round(ours, executions, at_once)
        child.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(_DUMP_WITHIN):
            while not await asyncio.to_thread(path.exists):  # noqa: ASYNC110 (another process writes it)
                await asyncio.sleep(0.05)
    profiler = cProfile.Profile(time.thread_time)
    await alone()
    profiler.enable()
    await run_round(alone, executions, at_once)
    profiler.disable()
    profiler.create_stats()
    found = by_package(marshal.loads(await asyncio.to_thread(path.read_bytes)))
    return _rows(found, by_package(profiler.stats), executions)


def _rows(ours: Mapping[str, float], bare: Mapping[str, float], executions: int) -> list[Row]:
    ms = 1e3 / executions
    rows = [_row("all Python of the process", sum(ours.values()) * ms, sum(bare.values()) * ms)]
    above = sorted(ours, key=lambda name: bare.get(name, 0) - ours[name])
    return rows + [_row(name, ours[name] * ms, bare.get(name, 0) * ms) for name in above[:_SHOWN]]


def _row(name: str, ours: float, bare: float) -> Row:
    note = f"{ours - bare:+.1f} ms above it"
    return Row(
        f"profiled CPU per turn: {name}", ours, "ms", floors=(Floor("bare loop", bare, "ms"),), note=note
    )


def by_package(stats: Stats) -> dict[str, float]:
    """Seconds of own time; a built-in function's belong to who called it."""
    found: dict[str, float] = defaultdict(float)
    for (file, _, _), (_, _, own, _, callers) in stats.items():
        if file != "~":
            found[_package(file)] += own
            continue
        for (caller, _, _), (_, _, part, _) in callers.items():
            found[_package(caller)] += part
    return found


def _package(file: str) -> str:
    if match := re.search(r"/site-packages/([^/]+)", file):
        return match[1].removesuffix(".py")
    if match := re.search(r"/src/(agent_runner(?:/[^/]+)?(?:/[^/]+)?)", file):
        return match[1].removesuffix(".py").replace("/", ".")
    if match := re.search(r"/python3\.\d+/([^/]+)", file):
        return match[1].removesuffix(".py")
    return "built in"
