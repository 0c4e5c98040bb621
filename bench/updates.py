"""Durable updates from fifty executions at once: the store alone, through the services, over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from agent_runner.adapters.announcers.memory import MemoryAnnouncer
from agent_runner.adapters.artifacts.objects import ObjectArtifactStore
from agent_runner.adapters.store.database import SqliteDatabase
from agent_runner.adapters.store.sqlite import SqliteEventLog, SqliteResourceStore
from agent_runner.adapters.workflows.memory import MemoryWorkflowStarter
from agent_runner.client.channels import Channel
from agent_runner.services.container import Services, build_services
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.runner_service_pb2 import AppendEventsRequest, StartAttemptRequest
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.commons.apiresource.enum_pb2 import ApiResourceOwnerScope
from bench import store
from bench.appending import Appender, delta, pending_executions
from bench.plans import Plan
from bench.product import Processes
from bench.rows import Budget, Floor, Row, in_ms, least, spread

WRITERS = 50
_TEXT = "e" * 1000
_BATCH = 10
"""Events of one append over gRPC: the product's own setting."""


async def durable_updates(folder: Path, plan: Plan) -> list[Row]:
    """One event of 1 kB an update, `synchronous=FULL`: the event log alone, and `AppendEvents` in process."""
    floor = await asyncio.to_thread(store.commit_floor, folder, 200)
    floors = (Floor("a commit alone", floor["per_second"], "/s"),)
    budget = least(5_000)
    appended = await store.append(folder, WRITERS, plan.updates)
    name = f"durable updates from {WRITERS} executions, the store alone"
    count = WRITERS * plan.updates
    note = f"p95 of one {appended['p95_ms']:.1f} ms, {appended['cpu_us']:.0f} us of CPU each"
    alone = Row(name, appended["per_second"], "/s", count, floors=floors, budget=budget, note=note)
    async with _services(folder) as services:
        appends = [await _in_process(services, number) for number in range(WRITERS)]
        served = await _all(
            f"durable updates from {WRITERS} executions, through the services",
            appends,
            plan.updates,
            (*floors, Floor("the store alone", alone.value, "/s")),
            budget,
        )
    return [alone, served]


async def updates_over_grpc(processes: Processes, folder: Path, plan: Plan) -> list[Row]:
    """`AppendEvents` from another process: calls of one event, and of ten as runners send them."""
    floor = await asyncio.to_thread(store.commit_floor, folder, 200)
    floors = (Floor("a commit alone", floor["per_second"], "/s"),)
    ids = await pending_executions(processes, folder, WRITERS)
    channel = Channel(processes.address)
    try:
        appenders = [Appender(channel, execution_id) for execution_id in ids]
        await asyncio.gather(*(appender.start() for appender in appenders))
        rows = []
        for events, how in ((1, "one"), (_BATCH, "ten")):
            rows.append(
                await _all(
                    f"durable events from {WRITERS} executions over gRPC, {how} a call",
                    [_over_grpc(appender, events) for appender in appenders],
                    max(plan.updates // 4, 10),
                    floors,
                    least(5_000) if events == _BATCH else None,
                    events,
                )
            )
    finally:
        await channel.aclose()
    return rows


async def _all(
    name: str,
    appends: list[Callable[[], Awaitable[None]]],
    times: int,
    floors: tuple[Floor, ...],
    budget: Budget | None,
    events: int = 1,
) -> Row:
    """Let all writers append so many times at once."""
    seconds: list[float] = []

    async def write(append: Callable[[], Awaitable[None]]) -> None:
        for _ in range(times):
            began = time.perf_counter()
            await append()
            seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(write(append) for append in appends))
    rate = len(seconds) * events / (time.perf_counter() - began)
    note = f"of one call, ms: {spread(in_ms(seconds))}"
    return Row(name, rate, "/s", len(seconds) * events, None, floors, budget, note)


def _over_grpc(appender: Appender, events: int) -> Callable[[], Awaitable[None]]:
    return lambda: appender.say(events)


@contextlib.asynccontextmanager
async def _services(folder: Path) -> AsyncIterator[Services]:
    """The control plane's services on SQLite, without a network and without Temporal."""
    async with SqliteDatabase(folder / "services.db") as database:
        services = build_services(
            SqliteResourceStore(database),
            SqliteEventLog(database),
            MemoryAnnouncer(),
            MemoryWorkflowStarter(),
            artifacts=ObjectArtifactStore.from_url(folder.as_uri()),
            spool=folder,
        )
        try:
            yield services
        finally:
            await services.aclose()


async def _in_process(services: Services, number: int) -> Callable[[], Awaitable[None]]:
    """Take an execution; returns what appends one event to it."""
    agent = Agent(api_version="agentic.stigmer.ai/v1", kind="Agent")
    agent.metadata.name, agent.metadata.org = f"bench {number}", "local"
    agent.metadata.owner_scope = ApiResourceOwnerScope.organization
    agent.spec.instructions = "Nobody runs this."
    made = await services.agents.create(agent)
    execution = AgentExecution(api_version="agentic.stigmer.ai/v1", kind="AgentExecution")
    execution.metadata.name, execution.metadata.org = f"bench {number}", "local"
    execution.spec.message, execution.spec.agent_id = "go", made.metadata.id
    execution_id = (await services.executions.create(execution)).metadata.id
    request = StartAttemptRequest(execution_id=execution_id, worker="bench")
    attempt = (await services.events.start_attempt(request)).attempt
    position = 0

    async def append() -> None:
        nonlocal position
        events: list[ExecutionEvent] = [delta(_TEXT)]
        answer = await services.events.append(
            AppendEventsRequest(execution_id=execution_id, attempt=attempt, position=position, events=events)
        )
        position = answer.next_position

    return append
