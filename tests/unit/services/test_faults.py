"""Stores that fail before or after they write, Temporal away, processes that die: nothing is lost."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from unit.services.conftest import World
from unit.services.fakes.resources import COMPLETED, IN_PROGRESS, agent, execution, has_said, says, session
from unit.services.fakes.runners import Runner

from agent_runner.domain.status import fold
from agent_runner.errors import (
    AgentRunnerError,
    FailedPreconditionError,
    FencedError,
    NotFoundError,
    PositionError,
    UnavailableError,
)
from agent_runner.services.container import Services
from agent_runner.services.execution_records import OPEN
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.execution_service_pb2 import WatchExecutionResponse
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_COMPLETED,
    EXECUTION_FAILED,
)

ENDS = {EXECUTION_COMPLETED, EXECUTION_CANCELLED, EXECUTION_FAILED}


class Faults:
    """Makes methods of the stores fail now and then, before they write or after."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.rate = 0.0

    def install(self, target: Any, *names: str) -> None:
        for name in names:
            setattr(target, name, self._failing(getattr(target, name)))

    def _failing(self, method: Any) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            if self.random.random() < self.rate:
                raise UnavailableError("not now")
            result = await method(*args, **kwargs)
            if self.random.random() < self.rate:
                raise UnavailableError("written, and the answer lost")
            return result

        return call


class Simulation:
    """Clients, runners and an unreliable world, all from one seed.

    Args:
        replicas: how many processes serve at once.
    """

    def __init__(self, seed: int, replicas: int = 1) -> None:
        self.replicas = replicas
        self.world = World()
        self.faults = Faults(seed)
        self.random = self.faults.random
        self.faults.install(self.world.store, "put", "get", "list", "count", "values")
        self.faults.install(self.world.log, "append", "read", "head")
        self.pool: list[Services] = []
        self.start_processes()
        self.sessions: list[str] = []
        self.order: dict[str, list[str]] = {}

    @property
    def services(self) -> Services:
        """Whichever process the call happens to reach."""
        return self.random.choice(self.pool)

    def start_processes(self) -> None:
        self.pool = [self.world.process(replicas=self.replicas > 1) for _ in range(self.replicas)]

    async def prepare(self) -> None:
        made = await self.services.agents.create(agent())
        for number in range(3):
            talk = await self.services.sessions.create(
                session(made.status.default_instance_id, f"talk {number}")
            )
            self.sessions.append(talk.metadata.id)

    async def step(self) -> None:
        self.faults.rate = self.random.choice([0.0, 0.0, 0.05, 0.3])
        self.world.workflows.away = self.random.random() < 0.1
        with suppress(UnavailableError):
            await self.random.choice(
                [self.create, self.create, self.cancel, self.run, self.run, self.restart]
            )()

    async def create(self) -> None:
        await self.services.executions.create(execution(session_id=self.random.choice(self.sessions)))

    async def cancel(self) -> None:
        stored = await self.world.store.list("agent_execution", limit=5)
        if stored:
            with suppress(FailedPreconditionError, NotFoundError):
                await self.services.executions.cancel(self.random.choice(stored).key.id)

    async def restart(self) -> None:
        """Another process takes over; what the old one did in the background is lost."""
        number = self.random.randrange(len(self.pool))
        for task in self.pool[number].runs._tasks:
            task.cancel()
        self.pool[number] = self.world.process(replicas=self.replicas > 1)
        await self.pool[number].reconciler.reconcile()

    async def run(self) -> None:
        """One attempt of something Temporal has started, as far as it gets."""
        if not self.world.workflows.open:
            return
        execution_id = self.random.choice(sorted(self.world.workflows.open))
        runner = Runner(self.services, execution_id)
        try:
            await runner.start(run=execution_id, attempt=0)
            await self.send(runner, IN_PROGRESS, says("m", "Hello"))
            answer = await self.send(runner, has_said("m"))
            end = ExecutionEvent()
            end.phase_changed.phase = EXECUTION_CANCELLED if answer else EXECUTION_COMPLETED
            await self.send(runner, end if answer else COMPLETED)
        except (NotFoundError, FailedPreconditionError):
            pass
        except FencedError:
            return
        self.order.setdefault(execution_id, [])
        self.world.workflows.open.discard(execution_id)

    async def send(self, runner: Runner, *events: ExecutionEvent) -> bool:
        """Append, again as a client does when it heard nothing."""
        for _ in range(20):
            try:
                return (await runner.send(*events)).cancel_requested
            except PositionError as error:
                runner.position = error.expected
            except UnavailableError:
                await asyncio.sleep(0)
        raise UnavailableError("gave up")

    async def settle(self) -> None:
        """With everything back, all must come to its end."""
        self.faults.rate, self.world.workflows.away = 0.0, False
        self.start_processes()
        for _ in range(400):
            for services in self.pool:
                await services.reconciler.reconcile()
            while tasks := [task for services in self.pool for task in services.runs._tasks]:
                await asyncio.wait(tasks)
            await self.run()
            self.world.clock.advance(timedelta(seconds=20))
            if not await self.unfinished():
                return
        raise AssertionError(f"never ended: {await self.unfinished()}")

    async def unfinished(self) -> list[str]:
        stored = await self.world.store.list("agent_execution", limit=10_000)
        return [
            r.key.id for r in stored if r.fields["phase"] in ("EXECUTION_PENDING", "EXECUTION_IN_PROGRESS")
        ]


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("seed", range(15))
async def test_everything_that_is_stored_comes_to_an_end(seed: int, replicas: int) -> None:
    simulation = Simulation(seed, replicas)
    await simulation.prepare()
    for _ in range(80):
        await simulation.step()
        await asyncio.sleep(0)
    await simulation.settle()

    world = simulation.world
    stored = await world.store.list("agent_execution", limit=10_000)
    assert len(stored) >= 3
    assert await world.store.values("agent_execution", OPEN) == []
    for resource in stored:
        rows = await world.log.read(resource.key.id, limit=10_000)
        events = [ExecutionEvent.FromString(body) for _seq, body in rows]
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        ends = [e for e in events if e.HasField("phase_changed") and e.phase_changed.phase in ENDS]
        assert len(ends) == 1
        assert events[-1] == ends[0]
        shown = await simulation.services.executions.get(resource.key.id)
        expected = fold(AgentExecutionStatus(), events)
        expected.audit.CopyFrom(shown.status.audit)
        assert shown.status == expected


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("seed", range(8))
async def test_turns_never_overlap_whatever_fails(seed: int, replicas: int) -> None:
    simulation = Simulation(seed, replicas)
    await simulation.prepare()
    started: dict[str, str] = {}
    starts = simulation.world.workflows.start

    async def checked(execution_id: str, session_id: str, agent_id: str, **more: Any) -> None:
        for other, its_session in started.items():
            if its_session == session_id and other != execution_id and other in simulation.world.log._logs:
                rows = simulation.world.log._logs[other].events
                status = fold(AgentExecutionStatus(), [ExecutionEvent.FromString(body) for _, body in rows])
                assert status.phase in ENDS, f"{other} runs while {execution_id} starts"
        await starts(execution_id, session_id, agent_id, **more)
        started[execution_id] = session_id

    simulation.world.workflows.start = checked  # type: ignore[method-assign]
    for _ in range(80):
        await simulation.step()
        await asyncio.sleep(0)
    await simulation.settle()


async def test_a_watcher_collects_the_log_whatever_fails() -> None:
    simulation = Simulation(1)
    await simulation.prepare()
    made: AgentExecution = await simulation.services.executions.create(
        execution(session_id=simulation.sessions[0])
    )
    collected: list[int] = []

    async def collect() -> None:
        while True:
            with suppress(UnavailableError):
                after = collected[-1] if collected else 0
                async for batch in simulation.services.watches.watch(made.metadata.id, after):
                    collected.extend(e.seq for e in WatchExecutionResponse.FromString(batch.payload).events)
                return

    task = asyncio.create_task(collect())
    runner = Runner(simulation.services, made.metadata.id)
    await runner.start()
    simulation.faults.rate = 0.2
    for number in range(200):
        with suppress(AgentRunnerError):
            await simulation.send(runner, says(f"m{number}"))
    simulation.faults.rate = 0.0
    await simulation.send(runner, COMPLETED)
    await asyncio.wait_for(task, 120)

    assert collected == list(range(1, len(collected) + 1))
    assert len(collected) == (await simulation.world.log.head(made.metadata.id)).last_seq
