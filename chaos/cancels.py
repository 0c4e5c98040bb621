"""Many cancels, all of which must end CANCELLED: while models and tools speak, and while they are silent."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Kind:
    """What runs when it is cancelled.

    Attributes:
        steps: the model's.
        begun: the event after which somebody cancels.
        share: of all cancels.
        promised: seconds from the cancel to the end, p95; with a server which pushes cancels and without.
        speaks: whether there is something said or done to be kept.
    """

    name: str
    steps: list[dict[str, Any]]
    begun: str
    share: float
    promised: tuple[float, float]
    speaks: bool = True


_KINDS = (
    Kind("model streams", [{"text": "word " * 20_000}], "message_delta", 1, (0.1, 1)),
    Kind(
        "model is silent",
        [{"text": "Late.", "first_token_ms": 86_399_000}],
        "phase_changed",
        0.5,
        (0.1, 1),
        False,
    ),
    Kind("tool is silent", [{"calls": [execute(f"sleep {_SLEEP}")]}], "tool_call_started", 0.5, (0.1, 1)),
    Kind("shell with children", [{"calls": [execute(_SHELL)]}], "tool_call_output", 0.1, (2, 2)),
)


@dataclass(slots=True)
class Cancelled:
    """What became of the cancelled executions of one kind."""

    seconds: list[float] = field(default_factory=list)
    phases: Counter[str] = field(default_factory=Counter)
    without_output: int = 0


async def cancels(folder: Path, *, seed: int, count: int, at_once: int, pushes: bool) -> list[str]:
    """Cancel `count` streaming executions, and fewer of what else may run.

    Args:
        pushes: whether Temporal pushes cancels to workers, as our managed one does.
    """
    problems: list[str] = []
    say("Temporal pushes cancels to workers" if pushes else "workers learn of cancels by their heartbeats")
    async with cluster(folder, workers=1, concurrency=max(at_once, 20), pushes_cancels=pushes) as made:
        rng = random.Random(seed)
        load = Load(f"{seed:x}-{int(time.time()):x}")
        async with AgentRunner(made.address, org="local") as runner:
            for kind in _KINDS:
                script = write_script(
                    folder / f"{kind.name.replace(' ', '-')}.yaml", [{"steps": kind.steps}], 20
                )
                agent = await load.make_agent(runner, script)
                runs = max(round(count * kind.share), 5)
                seen = await _cancel_all(runner, agent, runs, at_once, kind, rng)
                problems += _judge(kind, runs, seen, pushes)
        problems += await _left_behind()
    return problems


async def _cancel_all(
    runner: AgentRunner, agent: str, count: int, at_once: int, kind: Kind, rng: random.Random
) -> Cancelled:
    gate, seen = asyncio.Semaphore(at_once), Cancelled()

    async def one(pause: float) -> None:
        async with gate:
            await _cancel_one(runner, agent, kind, pause, seen)

    await one(1.0)  # the first one loads what is loaded once
    seen = Cancelled()
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(one(rng.uniform(0, 1)))  # between two heartbeats
    return seen


async def _cancel_one(runner: AgentRunner, agent: str, kind: Kind, pause: float, seen: Cancelled) -> None:
    execution = await runner.executions.start("go", agent_id=agent)
    asked: asyncio.Task[float] | None = None
    async for event in runner.executions.watch(execution.metadata.id):
        if asked is None and event.attempt and event.WhichOneof("event") == kind.begun:
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
    seen.without_output += kind.speaks and not partial


async def _cancel_soon(runner: AgentRunner, execution_id: str, pause: float) -> float:
    await asyncio.sleep(pause)
    began = time.perf_counter()
    await runner.executions.cancel(execution_id)
    return began


def _judge(kind: Kind, count: int, seen: Cancelled, pushes: bool) -> list[str]:
    promised = kind.promised[0 if pushes else 1]
    say(f"{kind.name}: {count}: {dict(seen.phases)}, {quantiles(seen.seconds)} (promised p95 {promised})")
    problems = []
    if seen.phases != Counter({phase_word(EXECUTION_CANCELLED): count}):
        problems.append(f"{kind.name}: not all ended CANCELLED: {dict(seen.phases)}")
    if seen.without_output:
        problems.append(f"{kind.name}: {seen.without_output} without what they had said and done")
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
