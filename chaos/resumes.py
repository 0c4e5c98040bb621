"""A worker is killed and another one goes on: how long that takes, nothing else being wrong."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from datetime import UTC, datetime
from pathlib import Path

from agent_runner.client import AgentRunner
from agent_runner.v1.events_pb2 import ExecutionEvent
from chaos.checks import moment
from chaos.clusters import Cluster, cluster
from chaos.loads import Load
from chaos.reports import quantile, quantiles, say
from chaos.scripts import write_script

_AT_ONCE = 3
MOST_SECONDS = 6.5


async def resumes(folder: Path, *, seed: int, count: int) -> list[str]:
    """Kill the worker that runs a turn, `count` times; two others stand by."""
    seconds: list[float] = []
    async with cluster(folder, workers=2) as made:
        rng = random.Random(seed)
        load = Load(f"{seed:x}-{int(time.time()):x}")
        turns = [{"steps": [{"text": "word " * 100_000}]}]
        async with AgentRunner(made.address, org="local") as runner:
            agent = await load.make_agent(runner, write_script(folder / "stream.yaml", turns, 20))
            await asyncio.sleep(3)  # both workers are there
            for _ in range(count):
                seconds += await _once(made, runner, agent, rng)
                say(f"resumed after {', '.join(f'{s:.2f}' for s in seconds[-_AT_ONCE:])} s")
    say(f"worker killed -> first event of the next attempt: {quantiles(seconds)}")
    p95 = quantile(seconds, 0.95)
    return [f"p95 {p95:.2f} s is over {MOST_SECONDS} s"] if p95 > MOST_SECONDS else []


async def _once(made: Cluster, runner: AgentRunner, agent: str, rng: random.Random) -> list[float]:
    started = [await runner.executions.start("go", agent_id=agent) for _ in range(_AT_ONCE)]
    ids = [execution.metadata.id for execution in started]
    pids = await asyncio.gather(*(_streams(runner, execution_id) for execution_id in ids))
    await asyncio.sleep(rng.uniform(0, 2))
    victim = next(worker for worker in made.workers if made.pid(worker) == pids[0])
    killed = datetime.now(UTC)
    await made.kill(victim)
    waiting = [i for i, pid in zip(ids, pids, strict=True) if pid == pids[0]]
    events = await asyncio.gather(*(_taken_over(runner, i, pids[0]) for i in waiting))
    made.run(victim)
    for execution_id in ids:
        with contextlib.suppress(Exception):
            await runner.executions.cancel(execution_id)
    await asyncio.sleep(4)  # the killed one is back
    return [(moment(event) - killed).total_seconds() for event in events]


async def _streams(runner: AgentRunner, execution_id: str) -> int:
    """Wait for text; returns the process that runs it."""
    pid = 0
    async for event in runner.executions.watch(execution_id):
        if event.WhichOneof("event") == "attempt_started":
            pid = _pid(event)
        if event.WhichOneof("event") == "message_delta":
            break
    return pid


async def _taken_over(runner: AgentRunner, execution_id: str, dead: int) -> ExecutionEvent:
    async for event in runner.executions.watch(execution_id):
        if event.WhichOneof("event") == "attempt_started" and _pid(event) != dead:
            return event
    raise AssertionError(f"{execution_id} ended without having been taken over")


def _pid(event: ExecutionEvent) -> int:
    return int(event.attempt_started.worker.rpartition("/")[2])
