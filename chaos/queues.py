"""Many messages sent at once into few sessions: each runs once, in order."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

from temporalio.client import Client

from agent_runner.client import AgentRunner
from agent_runner.domain.phases import is_terminal, phase_word
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED
from chaos.checks import UNOWNED, Findings, Session, check_order
from chaos.clusters import Cluster, cluster
from chaos.loads import Load
from chaos.reports import say
from chaos.scripts import write_script
from chaos.watchers import Watched

_SENDERS = 50
_PER_EXECUTION = timedelta(seconds=2)
_PROGRESS = timedelta(seconds=15)
_PARTS = 4
"""The run is told in so many equal parts: a queue that costs more the longer it is shows in them."""


async def queues(folder: Path, *, seed: int, messages: int, sessions: int, workers: int) -> list[str]:
    """Send all, wait, and compare each session's log of turns with the order of creation."""
    async with cluster(folder, workers=workers, concurrency=50) as made:
        load = Load(f"{seed:x}-{int(time.time()):x}")
        turns = [{"steps": [{"text": "Heard {{message}}, after {{previous_message}}."}]}]
        async with AgentRunner(made.address, org="local") as runner:
            agent = await load.make_agent(runner, write_script(folder / "queue.yaml", turns, 0))
            # Ids are the server's: ones chosen here would be the order, whenever they arrived.
            opened = [
                load.add(await runner.executions.start(f"first of {number}", agent_id=agent))
                for number in range(sessions)
            ]
            _say_sizes(made, "before")
            began = time.monotonic()
            await _send(load, runner, [watched.session_id for watched in opened], messages)
            sent = time.monotonic() - began
            say(f"{messages} messages into {sessions} sessions: taken at {messages / sent:.0f} /s")
            await _Drain(made, runner, load, messages + sessions, began).run()
            _say_sizes(made, "after")
            problems = await _closed(made)
        return problems + await _judge(made, load, messages + sessions)


async def _closed(made: Cluster) -> list[str]:
    """Wait until Temporal has closed the workflows too, which are no use to anybody any more."""
    client = await Client.connect(made.temporal.address)
    began = time.monotonic()
    while running := (await client.count_workflows("ExecutionStatus = 'Running'")).count:
        if time.monotonic() - began > UNOWNED.total_seconds():
            return [f"{running} workflows still run {UNOWNED} after their executions have ended"]
        await asyncio.sleep(0.2)
    say(f"all workflows are closed {time.monotonic() - began:.1f} s after the last execution has ended")
    return []


def _say_sizes(made: Cluster, when: str) -> None:
    """What the processes hold in memory, and the stores on disk."""
    memory = ", ".join(f"{p} {made.memory_mib(p):.0f}" for p in ("server", *made.workers, "temporal"))
    stores = {"control plane": "control-plane.db*", "checkpoints": "checkpoints.db*"}
    sizes = {name: _size(made.data, pattern) for name, pattern in stores.items()}
    sizes["Temporal"] = _size(made.data.parent / "temporal", "temporal.db*")
    say(f"{when}: MiB of memory: {memory}")
    say(f"{when}: MiB on disk: {', '.join(f'{name} {size:.1f}' for name, size in sizes.items())}")


def _size(folder: Path, pattern: str) -> float:
    return sum(path.stat().st_size for path in folder.glob(pattern)) / 2**20


async def _send(load: Load, runner: AgentRunner, sessions: list[str], messages: int) -> None:
    """Send all, `_SENDERS` at a time, each session in turn."""
    numbers = iter(range(messages))
    done = 0

    async def send() -> None:
        nonlocal done
        for number in numbers:
            session_id = sessions[number % len(sessions)]
            load.add(await runner.executions.start(f"n{number}", session_id=session_id))
            done += 1

    telling = asyncio.create_task(_tell(lambda: f"{done} of {messages} messages are taken"))
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_SENDERS):
                group.create_task(send())
    finally:
        telling.cancel()


async def _tell(line: Callable[[], str]) -> None:
    """Say from time to time how far long work is."""
    while True:
        await asyncio.sleep(_PROGRESS.total_seconds())
        say(line())


class _Drain:
    """Follows each session from one execution to the next until all have ended."""

    def __init__(self, made: Cluster, runner: AgentRunner, load: Load, count: int, began: float) -> None:
        self._made = made
        self._runner = runner
        self._load = load
        self._count = count
        self._began = began
        self._ends: list[float] = []
        """Seconds at which executions were seen to have ended."""
        self._cpu = [made.cpu_seconds()]
        """Of all processes, at the beginning and at the end of each part."""

    async def run(self) -> None:
        limit = (_PER_EXECUTION * self._count).total_seconds() + 120
        telling = asyncio.create_task(
            _tell(lambda: f"{len(self._ends)} of {self._count} executions are done")
        )
        try:
            async with asyncio.timeout(limit), asyncio.TaskGroup() as group:
                for members in self._load.sessions.values():
                    members.sort(key=lambda watched: watched.execution_id)
                    group.create_task(self._follow(members))
        finally:
            telling.cancel()
        elapsed, each = self._ends[-1], self._count / _PARTS
        edges = [0.0, *(self._ends[self._count * part // _PARTS - 1] for part in range(1, _PARTS + 1))]
        rates = [each / max(after - before, 0.001) for before, after in pairwise(edges)]
        costs = [(after - before) / each * 1000 for before, after in pairwise(self._cpu)]
        say(f"all done after {elapsed:.1f} s: {self._count / elapsed:.1f} executions per second")
        say(f"of each {_PARTS}th part: {', '.join(f'{rate:.1f}' for rate in rates)} per second")
        say(f"CPU of all processes per execution: {', '.join(f'{cost:.0f}' for cost in costs)} ms")

    async def _follow(self, members: list[Watched]) -> None:
        for watched in members:
            async for _ in self._runner.executions.watch(watched.execution_id):
                pass
            self._ends.append(time.monotonic() - self._began)
            if len(self._ends) == self._count * len(self._cpu) // _PARTS:
                self._cpu.append(self._made.cpu_seconds())


async def _judge(made: Cluster, load: Load, expected: int) -> list[str]:
    found, problems = Findings(), []
    heard = 0
    async with AgentRunner(made.address, org="local") as runner:
        for session_id, members in load.sessions.items():
            members.sort(key=lambda watched: watched.execution_id)
            session: list[tuple[str, list]] = []  # type: ignore[type-arg]
            before = ""
            for member in members:
                execution = await runner.executions.get(member.execution_id)
                log = [event async for event in runner.executions.watch(member.execution_id)]
                session.append((member.execution_id, log))
                found.phases[phase_word(execution.status.phase)] += 1
                problems += _heard_in_turn(execution, before)
                before = execution.spec.message
                heard += 1
            _check(session, session_id, found)
    say(f"{heard} executions: {dict(found.phases)}, longest silence {found.longest_silence:.1f} s")
    if heard != expected:
        problems.append(f"{expected} were sent, {heard} are there")
    say(f"{len(problems)} heard out of turn, {len(found.problems)} begun out of turn or more than once")
    return problems + found.problems


def _check(session: Session, session_id: str, found: Findings) -> None:
    check_order(session, found)
    attempts = Counter(
        name for name, log in session for e in log if e.WhichOneof("event") == "attempt_started"
    )
    found.problems += [f"{session_id}: {name} ran {n} times" for name, n in attempts.items() if n != 1]


def _heard_in_turn(execution: AgentExecution, before: str) -> list[str]:
    """The thread remembers the message before: what the model was shown is the order they ran in."""
    name, status = execution.metadata.id, execution.status
    if not is_terminal(status.phase) or status.phase != EXECUTION_COMPLETED:
        return [f"{name}: {phase_word(status.phase)} {status.error}"]
    said = [message.content for message in status.messages][-1]
    previous = before or "{{previous_message}}"
    wanted = f"Heard {execution.spec.message}, after {previous if before else ''}."
    return [] if said == wanted else [f"{name}: said {said!r}, not {wanted!r}"]
