"""Many cancels, all of which must end CANCELLED: while the model streams, and while a shell has children."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from agent_runner.client import AgentRunner
from agent_runner.domain.phases import is_terminal, phase_word
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_CANCELLED
from chaos.clusters import cluster
from chaos.loads import Load
from chaos.reports import quantiles, say
from chaos.scripts import execute, write_script

_SLEEP = "86399.25"
"""Seconds; so that its processes are known among all others."""
_SHELL = f"echo begun; sleep {_SLEEP} & (sleep {_SLEEP}; true) & setsid sleep {_SLEEP} & wait"
_GONE_WITHIN = 5.0


@dataclass(slots=True)
class Cancelled:
    """What became of the cancelled executions of one kind."""

    seconds: list[float] = field(default_factory=list)
    phases: Counter[str] = field(default_factory=Counter)
    without_output: int = 0


async def cancels(folder: Path, *, seed: int, count: int, at_once: int) -> list[str]:
    """Cancel `count` streaming executions, and a tenth as many with a shell that has children."""
    problems: list[str] = []
    async with cluster(folder, workers=1, concurrency=max(at_once, 20)) as made:
        rng = random.Random(seed)
        load = Load(made.address, made.address, f"{seed:x}-{int(time.time()):x}", rng)
        streaming = [{"steps": [{"text": "word " * 20_000}]}]
        shell = [{"steps": [{"calls": [execute(_SHELL)]}, {"text": "Not reached."}]}]
        async with AgentRunner(made.address, org="local") as runner:
            for name, turns, runs, begun in (
                ("model streams", streaming, count, "message_delta"),
                ("shell with children", shell, max(count // 10, 5), "tool_call_output"),
            ):
                script = write_script(folder / f"{begun}.yaml", turns, 20)
                agent = await load.make_agent(runner, script)
                seen = await _cancel_all(runner, agent, runs, at_once, begun, rng)
                problems += _judge(name, runs, seen)
        problems += await _left_behind()
    return problems


async def _cancel_all(
    runner: AgentRunner, agent: str, count: int, at_once: int, begun: str, rng: random.Random
) -> Cancelled:
    gate, seen = asyncio.Semaphore(at_once), Cancelled()

    async def one(pause: float) -> None:
        async with gate:
            await _cancel_one(runner, agent, begun, pause, seen)

    await one(1.0)  # the first one loads what is loaded once
    seen = Cancelled()
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(one(rng.uniform(0, 0.5)))
    return seen


async def _cancel_one(runner: AgentRunner, agent: str, begun: str, pause: float, seen: Cancelled) -> None:
    execution = await runner.executions.start("go", agent_id=agent)
    asked: asyncio.Task[float] | None = None
    async for event in runner.executions.watch(execution.metadata.id):
        if asked is None and event.WhichOneof("event") == begun:
            asked = asyncio.create_task(_cancel_soon(runner, execution.metadata.id, pause))
        if is_terminal(event.phase_changed.phase):
            now = time.perf_counter()
            seen.phases[phase_word(event.phase_changed.phase)] += 1
            if asked is not None:
                seen.seconds.append(now - await asked)
    status = (await runner.executions.get(execution.metadata.id)).status
    partial = any(m.content for m in status.messages[1:]) or any(
        c.result or c.error for c in status.tool_calls
    )
    seen.without_output += not partial


async def _cancel_soon(runner: AgentRunner, execution_id: str, pause: float) -> float:
    await asyncio.sleep(pause)
    began = time.perf_counter()
    await runner.executions.cancel(execution_id)
    return began


def _judge(name: str, count: int, seen: Cancelled) -> list[str]:
    say(f"{name}: {count} cancels: {dict(seen.phases)}, {quantiles(seen.seconds)}")
    problems = []
    if seen.phases != Counter({phase_word(EXECUTION_CANCELLED): count}):
        problems.append(f"{name}: not all ended CANCELLED: {dict(seen.phases)}")
    if seen.without_output:
        problems.append(f"{name}: {seen.without_output} without what they had said and done")
    return problems


async def _left_behind() -> list[str]:
    """Processes of cancelled shells that still run."""
    end = time.monotonic() + _GONE_WITHIN
    while left := list(_sleepers()):
        if time.monotonic() > end:
            return [f"still runs after its cancel: {process.pid}" for process in left]
        await asyncio.sleep(0.1)
    say("no process of a cancelled shell is left")
    return []


def _sleepers() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[-2:] == ["sleep", _SLEEP]:
                found.append(process)
    return found
