"""The storm: faults drawn from a seed, while executions run and watchers are thrown off."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent_runner.client import AgentRunner
from agent_runner.v1.events_pb2 import ExecutionEvent
from chaos.checks import (
    Findings,
    check_effects,
    check_log,
    check_order,
    check_states,
    check_steered,
    recoveries,
)
from chaos.clusters import Cluster, cluster
from chaos.compactions import Compactor, compactor
from chaos.loads import Load
from chaos.reports import quantiles, say
from chaos.scripts import MOST_ROUNDS, busy_script
from chaos.watchers import EVENTS, GRPC, Watched, Watchers

_ENDING = timedelta(minutes=5)
"""For all that was begun to end, once everything is well again."""
KINDS = {
    "kill worker": 5,
    "stop worker": 2,
    "freeze worker": 2,
    "kill server": 3,
    "kill temporal": 2,
    "cut": 4,
    "hold": 2,
    "delay": 3,
    "break": 5,
}
"""What may happen, and how often beside the others."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How hard it blows.

    Attributes:
        faults: in all; each begins `gap` seconds on average after the one before.
        sessions: that are busy at a time, each with up to 3 messages in its queue.
        longest: seconds a fault may last.
        reconnects: watchers go on until there were so many.
        cancels: share of executions somebody cancels, and
        pauses: that somebody pauses for some seconds.
        steers: share of messages into busy sessions that are to join the running turn.
    """

    seed: int
    faults: int = 200
    gap: float = 2.0
    sessions: int = 6
    workers: int = 2
    longest: float = 9.0
    reconnects: int = 1000
    cancels: float = 0.15
    pauses: float = 0.15
    steers: float = 0.4
    delay_ms: float = 20.0
    only: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: what, to whom, for how long."""

    kind: str
    target: str
    pause: float
    seconds: float
    size: int


def draw(plan: Plan, cluster: Cluster) -> Sequence[Fault]:
    """The faults of a seed."""
    rng = random.Random(plan.seed)
    kinds = [plan.only] if plan.only else list(KINDS)
    faults = []
    for _ in range(plan.faults):
        kind = rng.choices(kinds, [KINDS[kind] for kind in kinds])[0]
        target = _target(rng, kind, cluster)
        # Long enough, now and then, for Temporal to take a worker for dead.
        long = rng.random() < (0.6 if kind in ("freeze worker", "hold") else 0.25)
        seconds = rng.uniform(5.5, plan.longest) if long else rng.uniform(0.1, 3)
        faults.append(Fault(kind, target, rng.uniform(0.2, 2 * plan.gap), seconds, rng.randint(0, 20_000)))
    return faults


def _target(rng: random.Random, kind: str, cluster: Cluster) -> str:
    if kind in ("kill server", "kill temporal"):
        return kind.partition(" ")[2]
    if kind.endswith("worker"):
        return rng.choice(cluster.workers)
    return rng.choice(sorted(cluster.proxies))


@dataclass(slots=True)
class Storm:
    """Makes faults happen, several at a time but one per target, and mends what it broke."""

    cluster: Cluster
    happened: Counter[str] = field(default_factory=Counter)
    kills: list[tuple[datetime, int]] = field(default_factory=list)
    """When which worker process was killed."""
    _busy: dict[str, asyncio.Lock] = field(default_factory=dict)

    async def blow(self, faults: Sequence[Fault]) -> None:
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                lock = self._busy.setdefault(fault.target, asyncio.Lock())
                async with lock:  # the one before has been mended
                    pass
                await asyncio.sleep(fault.pause)
                group.create_task(self._strike(fault, lock))

    async def _strike(self, fault: Fault, lock: asyncio.Lock) -> None:
        async with lock:
            self.happened[fault.kind] += 1
            say(f"{fault.kind} {fault.target} {fault.seconds:.1f} s")
            if fault.target in self.cluster.proxies:
                await self._disturb(fault)
            elif fault.kind == "freeze worker":
                await self._freeze(fault)
            else:
                await self._end(fault)

    async def _disturb(self, fault: Fault) -> None:
        proxy = self.cluster.proxies[fault.target]
        if fault.kind == "cut":
            proxy.cut()
        elif fault.kind == "hold":
            proxy.hold()
        elif fault.kind == "delay":
            proxy.delay(min(fault.seconds / 10, 0.5))
        else:
            proxy.break_after(fault.size)
        await asyncio.sleep(fault.seconds)
        proxy.mend()

    async def _freeze(self, fault: Fault) -> None:
        child = self.cluster.processes.children[fault.target]
        child.send_signal(signal.SIGSTOP)
        await asyncio.sleep(fault.seconds)
        child.send_signal(signal.SIGCONT)

    async def _end(self, fault: Fault) -> None:
        pid = self.cluster.pid(fault.target)
        number = signal.SIGTERM if fault.kind == "stop worker" else signal.SIGKILL
        if fault.kind == "kill worker":
            self.kills.append((datetime.now(UTC), pid))
        await self.cluster.kill(fault.target, number)
        if fault.target != "temporal":
            await asyncio.sleep(fault.seconds)
            self.cluster.run(fault.target)
        if fault.target == "server":
            await self.cluster.serves()  # one that is killed before it serves is only away for longer


async def storm(folder: Path, plan: Plan) -> Findings:
    """Blow, wait until all has ended, check, print."""
    began = time.monotonic()
    async with cluster(folder, workers=plan.workers) as made:
        rng = random.Random(plan.seed + 1)
        grpc_at, web_at = (made.proxies[name].address for name in ("watchers/server", "watchers/web"))
        load, watchers = Load(f"{plan.seed:x}-{int(time.time()):x}"), Watchers(grpc_at, web_at, rng)
        blowing = Storm(made)
        over = asyncio.Event()
        async with AgentRunner(made.address, org="local") as runner, compactor(made, grpc_at, rng) as late:
            agent = await load.make_agent(runner, busy_script(folder, delay_ms=plan.delay_ms))
            async with asyncio.TaskGroup() as group:
                for number in range(plan.sessions):
                    busy = _Busy(plan, load, runner, agent, watchers, late, number)
                    group.create_task(busy.run(over))
                async with asyncio.timeout(_ENDING.total_seconds()):
                    await watchers.begun.wait()
                await blowing.blow(draw(plan, made))
                say(f"the storm is over after {time.monotonic() - began:.0f} s; waiting for all to end")
                over.set()
                group.create_task(_not_for_ever(load))
        # What is told now is told from disk.
        await made.kill("server")
        made.run("server")
        await made.serves()
        found, logs = await check(made, load, watchers)
    seconds = [s for log in logs.values() if log for s in recoveries(log, blowing.kills)]
    _print(load, watchers, late, blowing, found, seconds, time.monotonic() - began)
    return found


class _Busy:
    """One session after the other, each with a few messages queued, until the storm is over."""

    def __init__(
        self,
        plan: Plan,
        load: Load,
        runner: AgentRunner,
        agent: str,
        watchers: Watchers,
        late: Compactor,
        place: int,
    ) -> None:
        self._plan, self._load, self._runner, self._agent = plan, load, runner, agent
        self._watchers, self._late, self._place = watchers, late, place
        self._rng = random.Random(plan.seed * 1000 + place)
        self._number = place * 100_000

    async def run(self, over: asyncio.Event) -> None:
        while not over.is_set() or (
            self._place == 0 and self._watchers.reconnects.total() < self._plan.reconnects
        ):
            session_id = ""
            async with asyncio.TaskGroup() as group:
                for _ in range(self._rng.randint(1, 3)):
                    session_id = await self._send(group, session_id)

    async def _send(self, group: asyncio.TaskGroup, session_id: str) -> str:
        """Send one message, into the session if it is there, and have it watched; returns the session."""
        self._number += 1
        rng, plan = self._rng, self._plan
        message = f"m{self._number} rounds={rng.randint(1, MOST_ROUNDS)}" + rng.choice(("", " agents"))
        made = await self._load.create(
            self._runner,
            self._number,
            message,
            agent_id="" if session_id else self._agent,
            session_id=session_id,
            steers=bool(session_id) and rng.random() < plan.steers,
        )
        group.create_task(self._watch(made, self._number))
        if rng.random() < plan.cancels:
            group.create_task(self._load.cancel(self._runner, made, rng.uniform(0, 8)))
        if rng.random() < plan.pauses:
            pause = self._load.pause(self._runner, made, rng.uniform(0, 6), rng.uniform(0, 4))
            group.create_task(pause)
        return made.session_id

    async def _watch(self, made: Watched, number: int) -> None:
        """In one way or the other; one of three executions by subscribers too."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watchers.follow(made, EVENTS if number % 2 else GRPC, most=12))
            if number % 3 == 1:
                group.create_task(self._watchers.subscribe(made, most=6))
        await self._late.surprise(made)


async def _not_for_ever(load: Load) -> None:
    """Raises TimeoutError, naming them, when executions do not end."""
    end = time.monotonic() + _ENDING.total_seconds()
    while waiting := [w for w in load.watched if not w.ended]:
        if time.monotonic() > end:
            names = ", ".join(f"{w.execution_id} (at {len(w.events)})" for w in waiting)
            raise TimeoutError(f"have not ended {_ENDING} after the storm: {names}")
        await asyncio.sleep(0.5)


async def check(
    made: Cluster, load: Load, watchers: Watchers
) -> tuple[Findings, dict[str, Sequence[ExecutionEvent]]]:
    """Compare logs, workspaces and what watchers collected."""
    found, logs = Findings(), {}
    async with _reader(made) as runner:
        for watched in load.watched:
            logs[watched.execution_id] = await _log(runner, watched)
            check_log(watched, logs[watched.execution_id], found)
    for seen in watchers.subscribed:
        check_states(seen, found)
    for session_id, members in load.sessions.items():
        session = [(member.execution_id, logs[member.execution_id]) for member in members]
        check_order(session, found)
        check_steered(session, {member.execution_id: member.message for member in members}, found)
        check_effects(made.data / "sandboxes" / "sessions" / session_id / "workspace", session, found)
    return found, logs


@asynccontextmanager
async def _reader(made: Cluster) -> AsyncIterator[AgentRunner]:
    async with AgentRunner(made.address, org="local") as runner:
        yield runner


async def _log(runner: AgentRunner, watched: Watched) -> Sequence[ExecutionEvent]:
    async with asyncio.timeout(_ENDING.total_seconds()):
        return [event async for event in runner.executions.watch(watched.execution_id)]


def _print(
    load: Load,
    watchers: Watchers,
    late: Compactor,
    blowing: Storm,
    found: Findings,
    seconds: Sequence[float],
    elapsed: float,
) -> None:
    faults = sum(blowing.happened.values())
    say(f"{faults} faults in {elapsed:.0f} s: {dict(blowing.happened)}")
    say(f"{len(load.watched)} executions in {len(load.sessions)} sessions: {dict(found.phases)}")
    say(f"{found.events} events, {found.attempts} attempts, {found.resumes} resumes")
    reconnects = watchers.reconnects.total()
    say(f"{reconnects} reconnects of watchers: {found.lost} lost, {found.duplicated} duplicated")
    say(f"executions watched by: {dict(watchers.ways)}; reconnects by: {dict(watchers.reconnects)}")
    say(f"{found.states} states of subscribers compared with the log folded so far")
    say(f"{late.done} logs compacted while somebody was half-way through them")
    say(f"{found.steered} messages joined a running turn")
    say(
        f"{found.effects} side effects: {found.repeated} repeated, {found.missing} missing, "
        f"{found.uncertain} calls reported as interrupted"
    )
    say(f"longest silence of an execution whose turn it was: {found.longest_silence:.1f} s")
    say(f"cancel -> end: {quantiles(found.cancels)}")
    say(f"worker killed -> next attempt, other faults around: {quantiles(seconds)}")
    for line in found.failures:
        say(f"  {line}")
