"""The measurements: each gives rows, beside a floor from the same run where one exists."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import statistics
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from temporalio.client import Client

from agent_runner.client import AgentRunner
from agent_runner.ports.workflows import workflow_id
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_CANCELLED
from bench.floors import bare_turn, no_op_seconds
from bench.product import Processes, client, make_agent, one_process, run_turn
from bench.proxy import counting_proxy
from bench.scripts import turn_script

# The arguments of a call are some thirteen tokens of their own, so that at 20 ms this takes three seconds.
ROUNDS, TOKENS = 10, 22


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        budget: what DESIGN allows, in words; empty where it says nothing.
        floor: the same of the bare loop or the no-op, measured in this run; empty where there is none.
        holds: whether the budget is kept; None without one.
    """

    name: str
    value: str
    spread: str = ""
    floor: str = ""
    budget: str = ""
    holds: bool | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    latency_runs: int = 30
    pairs: int = 5
    crowd: int = 20
    crowd_pairs: int = 2
    rate_runs: int = 100
    cancels: int = 12
    many_rounds: int = 200
    many_tokens: int = 10_000


QUICK = Plan(
    latency_runs=10,
    pairs=2,
    crowd=10,
    crowd_pairs=1,
    rate_runs=30,
    cancels=4,
    many_rounds=50,
    many_tokens=3_000,
)


def milliseconds(values: Sequence[float]) -> str:
    return f"{statistics.median(values) * 1e3:.1f} ms"


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def spread(values: Sequence[float], scale: float = 1e3, unit: str = "ms") -> str:
    low, high = min(values) * scale, max(values) * scale
    return f"{low:.1f}-{high:.1f} {unit}, n={len(values)}"


async def start_up(folder: Path) -> list[Row]:
    """From the command to a stack that serves, and what it then costs to let it stand idle."""
    began = time.perf_counter()
    with one_process(folder) as processes:
        seconds = time.perf_counter() - began
        await asyncio.sleep(3)
        cpu = processes.cpu_seconds()
        await asyncio.sleep(5)
        idle = (processes.cpu_seconds() - cpu) / 5 * 100
        memory = processes.memory_mib("stack")
    return [
        Row("stack up", f"{seconds:.2f} s", budget="<= 3 s", holds=seconds <= 3),
        Row("idle, all processes", f"{idle:.1f} % CPU", "over 5 s", budget="<= 1 %", holds=idle <= 1),
        Row(
            "memory idle, control plane and runner in one",
            f"{memory:.0f} MiB",
            budget="<= 245 MiB",
            holds=memory <= 245,
        ),
    ]


async def first_event(processes: Processes, folder: Path, plan: Plan) -> list[Row]:
    """Create to the agent's first event, the model needing 5 ms a token."""
    script = turn_script(folder, rounds=0, tokens=10, delay_ms=5)
    temporal = await Client.connect(processes.temporal)
    no_op = await no_op_seconds(temporal, plan.latency_runs)
    bare = [(await bare_turn(script)).first_event for _ in range(plan.latency_runs)]
    async with client(processes) as runner:
        agent_id = await make_agent(runner, script)
        for _ in range(3):
            await run_turn(runner, agent_id)
        seen = [(await run_turn(runner, agent_id)).first_event for _ in range(plan.latency_runs)]
    p50, p95 = statistics.median(seen), quantile(seen, 0.95)
    floor = f"bare loop {milliseconds(bare)}, no-op workflow {milliseconds(no_op)}"
    return [
        Row(
            "create -> first agent event, p50",
            f"{p50 * 1e3:.1f} ms",
            spread(seen),
            floor,
            "<= 40 ms",
            p50 <= 0.040,
        ),
        Row("create -> first agent event, p95", f"{p95 * 1e3:.1f} ms", "", floor, "<= 80 ms", p95 <= 0.080),
    ]


async def long_turn(processes: Processes, folder: Path, plan: Plan) -> list[Row]:
    """A turn of 3 s, paired with the bare loop; alone, then many at once."""
    script = turn_script(folder, rounds=ROUNDS, tokens=TOKENS, delay_ms=20)
    async with client(processes) as runner:
        agent_id = await make_agent(runner, script)
        await run_turn(runner, agent_id)
        alone = await _pairs(runner, agent_id, script, plan.pairs, 1)
        crowd = await _pairs(runner, agent_id, script, plan.crowd_pairs, plan.crowd)
    return [
        _overhead("3 s turn above the bare loop, alone", alone, 2),
        _overhead(f"3 s turn above the bare loop, {plan.crowd} at once", crowd, 5),
    ]


async def _pairs(
    runner: AgentRunner, agent_id: str, script: Path, pairs: int, at_once: int
) -> list[tuple[float, float]]:
    """(bare, product) seconds: the median turn of each half of each pair."""
    found = []
    for _ in range(pairs):
        bare = await asyncio.gather(*(bare_turn(script) for _ in range(at_once)))
        ours = await asyncio.gather(*(run_turn(runner, agent_id) for _ in range(at_once)))
        found.append((statistics.median(b.seconds for b in bare), statistics.median(o.seconds for o in ours)))
    return found


def _overhead(name: str, pairs: Sequence[tuple[float, float]], most: float) -> Row:
    shares = [(ours / bare - 1) * 100 for bare, ours in pairs]
    middle = statistics.median(shares)
    floor = f"bare loop {statistics.median(bare for bare, _ in pairs):.2f} s"
    return Row(name, f"{middle:+.1f} %", spread(shares, 1, "%"), floor, f"<= {most:g} %", middle <= most)


async def throughput(processes: Processes, folder: Path, plan: Plan) -> list[Row]:
    """A model without delay: executions per second, and CPU of all processes above the bare loop's."""
    script = turn_script(folder, rounds=ROUNDS, tokens=TOKENS, delay_ms=0)
    rows = []
    bare = await _bare_cpu(script, plan)
    async with client(processes) as runner:
        agent_id = await make_agent(runner, script)
        for at_once in (1, 10, 20, 50):
            runs = max(at_once, plan.rate_runs if at_once > 1 else plan.rate_runs // 3)
            cpu = processes.cpu_seconds()
            began = time.perf_counter()
            await _many(runner, agent_id, runs, at_once)
            rate = runs / (time.perf_counter() - began)
            above = (processes.cpu_seconds() - cpu) / runs - bare
            budget = ("<= 45 ms", above <= 0.045) if at_once == 20 else ("", None)
            rows += [
                Row(
                    f"executions per second, {at_once} at once",
                    f"{rate:.1f} /s",
                    f"n={runs}",
                    budget=">= 18 /s" if at_once == 20 else "",
                    holds=rate >= 18 if at_once == 20 else None,
                ),
                Row(
                    f"CPU per turn above the bare loop, {at_once} at once",
                    f"{above * 1e3:.0f} ms",
                    "with checkpoints",
                    f"bare loop {bare * 1e3:.0f} ms",
                    *budget,
                ),
            ]
    memory = processes.memory_mib("stack")
    return [*rows, Row("memory after the load, one process", f"{memory:.0f} MiB")]


async def _bare_cpu(script: Path, plan: Plan) -> float:
    await bare_turn(script)
    began = time.process_time()
    for _ in range(3):
        await asyncio.gather(*(bare_turn(script) for _ in range(plan.crowd)))
    return (time.process_time() - began) / (3 * plan.crowd)


async def _many(runner: AgentRunner, agent_id: str, runs: int, at_once: int) -> None:
    gate = asyncio.Semaphore(at_once)

    async def one() -> None:
        async with gate:
            await run_turn(runner, agent_id)

    async with asyncio.TaskGroup() as group:
        for _ in range(runs):
            group.create_task(one())


async def history(processes: Processes, folder: Path, plan: Plan) -> list[Row]:
    """What a workflow's history weighs, whatever the run did."""
    temporal = await Client.connect(processes.temporal)
    rows = []
    async with client(processes) as runner:
        for rounds in (1, plan.many_rounds):
            agent_id = await make_agent(runner, turn_script(folder, rounds=rounds, tokens=rounds, delay_ms=0))
            done = await run_turn(runner, agent_id)
            handle = temporal.get_workflow_handle(workflow_id(done.execution.metadata.id))
            size = (await handle.describe()).raw_description.workflow_execution_info.history_size_bytes
            rows.append(
                Row(
                    f"Temporal history, {rounds} tool rounds",
                    f"{size / 1024:.1f} KiB",
                    budget="<= 20 KiB",
                    holds=size <= 20 * 1024,
                )
            )
    return rows


async def bytes_sent(folder: Path, plan: Plan) -> list[Row]:
    """What a runner in a process of its own sends, headers included, against the final state."""
    rows = []
    async with two_processes(folder) as (processes, sent):
        async with client(processes) as runner:
            floor = await _sent_by(runner, folder, sent, rounds=0, tokens=1)
            for tokens in (80, plan.many_tokens):
                weight, size, events = await _sent_by(runner, folder, sent, rounds=4, tokens=tokens)
                ratio = (weight - floor[0]) / size
                rows.append(
                    Row(
                        f"bytes sent to report {events} events ({tokens} tokens)",
                        f"{ratio:.2f} x",
                        f"{weight} bytes in all, final state {size}",
                        f"one token: {floor[0]} bytes",
                        "<= 1.5 x",
                        ratio <= 1.5,
                    )
                )
            script = turn_script(folder, rounds=0, tokens=10, delay_ms=5)
            agent_id = await make_agent(runner, script)
            seen = [(await run_turn(runner, agent_id)).first_event for _ in range(plan.latency_runs)]
        p50, p95 = statistics.median(seen), quantile(seen, 0.95)
        rows += [
            Row(
                "create -> first agent event, two processes, p50",
                f"{p50 * 1e3:.1f} ms",
                spread(seen),
                "",
                "<= 60 ms",
                p50 <= 0.060,
            ),
            Row(
                "create -> first agent event, two processes, p95",
                f"{p95 * 1e3:.1f} ms",
                "",
                "",
                "<= 120 ms",
                p95 <= 0.120,
            ),
            Row(
                "memory, control plane alone",
                f"{processes.memory_mib('server'):.0f} MiB",
                budget="<= 100 MiB idle",
            ),
            Row(
                "memory, runner alone", f"{processes.memory_mib('worker'):.0f} MiB", budget="<= 145 MiB idle"
            ),
        ]
    return rows


async def _sent_by(
    runner: AgentRunner, folder: Path, sent: Callable[[], int], *, rounds: int, tokens: int
) -> tuple[int, int, int]:
    """Bytes the runner sent for an execution, all calls and headers counted; its final size; its events."""
    agent_id = await make_agent(runner, turn_script(folder, rounds=rounds, tokens=tokens, delay_ms=1))
    await run_turn(runner, agent_id)
    before = sent()
    done = await run_turn(runner, agent_id)
    return sent() - before, done.execution.ByteSize(), done.events


@contextlib.asynccontextmanager
async def two_processes(folder: Path) -> AsyncIterator[tuple[Processes, Callable[[], int]]]:
    """`server` and `worker` with a Temporal of their own, a counting proxy between them."""
    from agent_runner.adapters.temporal.managed import ManagedTemporal

    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    async with ManagedTemporal(folder / "temporal") as temporal:
        processes = Processes(folder)
        try:
            server = f"127.0.0.1:{_free_port()}"
            processes.address, processes.temporal = server, temporal.address
            processes.spawn("server", "server", "--listen", server, TEMPORAL_ADDRESS=temporal.address)
            async with counting_proxy(server) as (address, sent):
                processes.spawn("worker", "worker", "--address", address, TEMPORAL_ADDRESS=temporal.address)
                async with client(processes) as runner:
                    await _served(runner)
                yield processes, sent
        finally:
            processes.stop()


async def _served(runner: AgentRunner) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        script = turn_script(Path(scratch), rounds=0, tokens=1, delay_ms=0)
        async with asyncio.timeout(60):
            while True:
                try:
                    await run_turn(runner, await make_agent(runner, script))
                    return
                except Exception:  # noqa: BLE001 (whatever it says while it starts)
                    await asyncio.sleep(0.1)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def cancels(processes: Processes, folder: Path, plan: Plan) -> list[Row]:
    """From the cancel call to CANCELLED in the log, the model streaming."""
    script = turn_script(folder, rounds=0, tokens=5_000, delay_ms=5)
    seconds = []
    async with client(processes) as runner:
        agent_id = await make_agent(runner, script)
        for _ in range(plan.cancels):
            execution = await runner.executions.start("go", agent_id=agent_id)
            began = 0.0
            async for event in runner.executions.watch(execution.metadata.id):
                if not began and event.WhichOneof("event") == "message_delta":
                    began = time.perf_counter()
                    await runner.executions.cancel(execution.metadata.id)
                if event.phase_changed.phase == EXECUTION_CANCELLED:
                    seconds.append(time.perf_counter() - began)
    p95 = quantile(seconds, 0.95)
    return [
        Row("cancel -> CANCELLED, p95", f"{p95 * 1e3:.0f} ms", spread(seconds), "", "<= 100 ms", p95 <= 0.1)
    ]


async def watchers(processes: Processes, folder: Path, plan: Plan) -> list[Row]:
    """A hundred watchers of one execution, all in this process: what is measured is both ends."""
    script = turn_script(folder, rounds=0, tokens=2_000, delay_ms=1)
    async with client(processes) as runner:
        agent_id = await make_agent(runner, script)
        execution = await runner.executions.start("go", agent_id=agent_id)

        async def watch() -> int:
            async with client(processes) as own:
                return len([1 async for _ in own.executions.watch(execution.metadata.id)])

        began = time.perf_counter()
        counts = await asyncio.gather(*(watch() for _ in range(100)))
        seconds = time.perf_counter() - began
    assert len(set(counts)) == 1, "watchers saw different numbers of events"
    return [
        Row(
            "100 watchers of one execution",
            f"{sum(counts) / seconds:.0f} events/s",
            f"{counts[0]} events each",
            budget=">= 15,000 /s",
            holds=None,
        )
    ]


async def crash(folder: Path) -> list[Row]:
    """SIGKILL of a runner; another one goes on."""
    script = turn_script(folder, rounds=0, tokens=3_000, delay_ms=10)
    async with two_processes(folder / "crash") as (processes, _), client(processes) as runner:
        agent_id = await make_agent(runner, script)
        execution = await runner.executions.start("go", agent_id=agent_id)
        killed = 0.0
        async for event in runner.executions.watch(execution.metadata.id):
            if not killed and event.WhichOneof("event") == "message_delta":
                first = psutil.Process(processes.children["worker"].pid)
                processes.spawn(
                    "second", "worker", "--address", processes.address, TEMPORAL_ADDRESS=processes.temporal
                )
                await asyncio.sleep(4)
                first.send_signal(signal.SIGKILL)
                killed = time.perf_counter()
            elif killed and event.WhichOneof("event") == "attempt_started":
                seconds = time.perf_counter() - killed
                break
        await runner.executions.cancel(execution.metadata.id)
    return [
        Row(
            "runner killed -> running on another",
            f"{seconds:.1f} s",
            "n=1",
            budget="<= 6.5 s",
            holds=seconds <= 6.5,
        )
    ]


async def stores(folder: Path, plan: Plan) -> list[Row]:
    """Durable updates from 50 executions at once, and what a short turn's checkpoints weigh."""
    from bench import store

    floor = await asyncio.to_thread(store.commit_floor, folder, 200)
    appended = await store.append(folder, 50, plan.rate_runs)
    rate = appended["per_second"]
    rows = [
        Row(
            "durable updates, 50 executions at once",
            f"{rate} /s",
            f"p95 {appended['p95_ms']} ms, {appended['cpu_us']} us CPU each",
            f"commit alone {floor['per_second']} /s",
            ">= 5,000 /s",
            rate >= 5000,
        )
    ]
    with warnings.catch_warnings():
        # The engine says that it keeps nothing where there are no checkpoints, which is what is measured.
        warnings.filterwarnings("ignore", message="`durability` has no effect")
        kept = {r["name"]: r for r in await store.checkpoints(folder, plan.rate_runs)}
    library = kept.get("the library's checkpoints", {}).get("bytes_per_turn", 0)
    weight = kept["our checkpoints"]["bytes_per_turn"]
    rows.append(
        Row(
            "checkpoints of a short turn",
            f"{weight / 1000:.1f} kB",
            f"over {plan.rate_runs} turns",
            f"the library's {library / 1000:.1f} kB",
            "<= 20 kB",
            weight <= 20_000,
        )
    )
    return rows
