"""Many executions at once: how many a second, how long each takes, and the CPU of each process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent_runner.client import AgentRunner
from agent_runner.errors import AgentRunnerError
from bench.floors import BareLoop
from bench.plans import Plan
from bench.product import Processes, TurnFailedError, client, make_agent, run_turn
from bench.rows import Budget, Floor, Row, in_ms, least, most, quantile, row_of, spread
from bench.scripts import usual_turn

Run = Callable[[], Awaitable[tuple[float, float]]]
"""Runs one execution; gives its seconds, and those until its first event."""
AT_ONCE = 20
"""What the budgets are for."""
_RATE = {"one process": 18.0, "two processes": 14.0}
_CPU_MS = {"one process": 45.0, "two processes": 75.0}


@dataclass(slots=True)
class Half:
    """One round of the load on the bare loop, or on the product.

    Attributes:
        turns, firsts: seconds of each execution, and until its first event.
        cpu: seconds of CPU of the whole round, by what used it.
    """

    executions: int
    seconds: float = 0.0
    turns: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    cpu: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Executions a second."""
        return len(self.turns) / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Of one execution, all processes."""
        return sum(self.cpu.values()) / self.executions * 1e3


@dataclass(frozen=True, slots=True)
class Load:
    """Rounds of the bare loop and of the product, by turns."""

    bare: list[Half]
    ours: list[Half]

    @property
    def cpu_above_ms(self) -> list[float]:
        """CPU of the product above the bare loop's, of one execution, in each round."""
        return [ours.cpu_ms - bare.cpu_ms for bare, ours in zip(self.bare, self.ours, strict=True)]


async def load(processes: Processes, folder: Path, plan: Plan) -> list[Row]:
    """Executions at once, with a scripted model at several speeds, beside the bare loop at the same."""
    rows = []
    # What the second process changes is plumbing, which shows where the model takes no time.
    speeds = plan.token_ms if processes.shape == "one process" else plan.token_ms[:1]
    for delay_ms in speeds:
        found = await _load(processes, folder, plan, delay_ms)
        rows += _rows(found, plan, delay_ms, processes.shape)
    if processes.shape == "one process":
        rows.append(Row("memory after the load, one process", processes.memory_mib("stack"), "MiB"))
    return rows


async def without_checkpoints(processes: Processes, folder: Path, plan: Plan) -> list[Row]:
    """CPU above the bare loop of a turn, the model taking no time, agents remembering nothing."""
    seen = await _load(processes, folder, plan, 0)
    above = _cpu_above(seen, plan, processes.shape, checkpoints=False)
    return [above, failures_row(seen, f"{processes.shape}, without checkpoints")]


async def _load(processes: Processes, folder: Path, plan: Plan, delay_ms: float) -> Load:
    script = usual_turn(folder, delay_ms=delay_ms)
    found = Load([], [])
    async with client(processes) as runner:
        agent_id = await make_agent(runner, script)
        alone = bare_runs(BareLoop(script))
        await alone()
        # As many graphs as run at once are built once, and then kept.
        await run_round(our_runs(runner, agent_id), plan.concurrency, plan.concurrency)
        for _ in range(plan.rounds):
            cpu = time.process_time()
            bare = await run_round(alone, plan.executions, plan.concurrency)
            bare.cpu = {"bare loop": time.process_time() - cpu}
            found.bare.append(bare)
            before = processes.cpu_by_role()
            ours = await run_round(our_runs(runner, agent_id), plan.executions, plan.concurrency)
            ours.cpu = {role: after - before[role] for role, after in processes.cpu_by_role().items()}
            found.ours.append(ours)
    return found


def bare_runs(loop: BareLoop) -> Run:
    async def one() -> tuple[float, float]:
        turn = await loop.turn()
        return turn.seconds, turn.first_event

    return one


def our_runs(runner: AgentRunner, agent_id: str) -> Run:
    async def one() -> tuple[float, float]:
        turn = await run_turn(runner, agent_id)
        return turn.seconds, turn.first_event

    return one


async def run_round(run: Run, executions: int, at_once: int) -> Half:
    """Run that many, so many at once; one that fails is counted and the others go on."""
    half, gate = Half(executions), asyncio.Semaphore(at_once)

    async def one() -> None:
        async with gate:
            try:
                seconds, first = await run()
            except (TurnFailedError, AgentRunnerError) as error:
                half.failures.append(str(error))
                return
            half.turns.append(seconds)
            half.firsts.append(first)

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(executions)))
    half.seconds = time.perf_counter() - began
    return half


def _rows(found: Load, plan: Plan, delay_ms: float, shape: str) -> list[Row]:
    at = f"{shape}, {delay_ms:g} ms/token, {plan.concurrency} at once"
    budgeted = plan.concurrency == AT_ONCE
    full_speed = budgeted and delay_ms == 0
    rows = [_rate(found, at, least(_RATE[shape]) if full_speed else None)]
    for name, bare, ours in (
        ("create -> first event", _all_ms(found.bare, "firsts"), _all_ms(found.ours, "firsts")),
        ("whole turn", _all_ms(found.bare, "turns"), _all_ms(found.ours, "turns")),
    ):
        floors = tuple(Floor(f"bare loop p{s * 100:.0f}", quantile(bare, s), "ms") for s in (0.5, 0.95))
        rows.append(row_of(f"{name}, {at}", ours, "ms", floors=floors))
    if delay_ms == 20:
        rows.append(_overhead(found, at, most(5) if budgeted else None))
    rows += _cpu_by_role(found, at)
    if delay_ms == 0:
        rows.append(_cpu_above(found, plan, shape, checkpoints=True))
    return [*rows, failures_row(found, at)]


def _all_ms(halves: list[Half], name: str) -> list[float]:
    # Where all failed there is no time to show; the line of the failures says so.
    return in_ms([value for half in halves for value in getattr(half, name)]) or [0.0]


def _rate(found: Load, at: str, budget: Budget | None) -> Row:
    rates = [half.rate for half in found.ours]
    bare = Floor("bare loop", quantile([half.rate for half in found.bare], 0.5), "/s")
    count = sum(half.executions for half in found.ours)
    middle = quantile(rates, 0.5)
    return Row(f"executions per second, {at}", middle, "/s", count, spread(rates), (bare,), budget)


def _overhead(found: Load, at: str, budget: Budget | None) -> Row:
    shares, bare = [], []
    for alone, ours in zip(found.bare, found.ours, strict=True):
        bare.append(quantile(_all_ms([alone], "turns"), 0.5))
        shares.append((quantile(_all_ms([ours], "turns"), 0.5) / bare[-1] - 1) * 100)
    floors = (Floor("bare loop", quantile(bare, 0.5), "ms"),)
    return row_of(f"3 s turn above the bare loop, {at}", shares, "%", floors=floors, budget=budget)


def _cpu_by_role(found: Load, at: str) -> list[Row]:
    floor = Floor("bare loop, in all", quantile([half.cpu_ms for half in found.bare], 0.5), "ms")
    rows = []
    for role in found.ours[0].cpu:
        values = [half.cpu[role] / half.executions * 1e3 for half in found.ours]
        rows.append(row_of(f"CPU per execution, {role}, {at}", values, "ms", floors=(floor,)))
    return rows


def _cpu_above(found: Load, plan: Plan, shape: str, *, checkpoints: bool) -> Row:
    """The budget is for turns without checkpoints; with them it is shown beside it."""
    kept = "with checkpoints" if checkpoints else "without checkpoints"
    floor = Floor("bare loop", quantile([half.cpu_ms for half in found.bare], 0.5), "ms")
    budget = None if checkpoints or plan.concurrency != AT_ONCE else most(_CPU_MS[shape])
    name = f"CPU per turn above the bare loop, {shape}, {kept}, {plan.concurrency} at once"
    return row_of(name, found.cpu_above_ms, "ms", floors=(floor,), budget=budget)


def failures_row(found: Load, at: str) -> Row:
    """A line that fails the run when an execution did not complete."""
    failures = [text for half in found.ours for text in half.failures]
    count = sum(half.executions for half in found.ours)
    return Row(
        f"executions that failed, {at}",
        len(failures),
        f"of {count}",
        note=failures[0] if failures else "",
        failed=bool(failures),
    )
