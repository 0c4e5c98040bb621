"""Runners on one data directory, and a control plane that can be away, for suites on what they keep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from contract.status_bench import Backend, attempt, begun, delta, done, phase

from agent_runner.adapters.status.native import NativeSinks
from agent_runner.adapters.status.spools import Spool
from agent_runner.ports.status_sinks import Grant, StatusSink
from agent_runner.runner.patience import patiently
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.execution_service_pb2 import WatchExecutionResponse
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED


@dataclass
class World:
    """A control plane that can be stopped, and runners on one data directory."""

    backend: Backend
    directory: Path
    spools: list[Spool] = field(default_factory=list)

    def sinks(self, most_bytes: int = 1 << 20) -> NativeSinks:
        """As one more runner process would have them."""
        self.spools.append(Spool(self.directory, most_bytes))
        return NativeSinks(self.backend.channel, spool=self.spools[-1])

    def files(self, kind: str = "events") -> list[Path]:
        return sorted(self.directory.glob(f"*.{kind}"))

    async def kept(self, size: int = 0) -> Path:
        """The one file, once it has more than so many bytes."""
        async with asyncio.timeout(120):
            while not (self.files() and self.files()[0].stat().st_size > max(8, size)):  # noqa: ASYNC110 (files have no event)
                await asyncio.sleep(0.01)
        (file,) = self.files()
        return file

    async def gone(self) -> None:
        async with asyncio.timeout(120):
            while self.files():  # noqa: ASYNC110 (files have no event)
                await asyncio.sleep(0.01)

    async def log(self) -> list[ExecutionEvent]:
        services = self.backend.native.services
        log = [
            event
            async for batch in services.watches.watch(self.backend.execution_id)
            for event in WatchExecutionResponse.FromString(batch.payload).events
        ]
        assert [event.seq for event in log] == list(range(1, len(log) + 1))
        return log


@asynccontextmanager
async def outage(world: World) -> AsyncIterator[None]:
    await world.backend.server.stop()
    yield
    await world.backend.server.start()


@asynccontextmanager
async def delivering(sinks: NativeSinks) -> AsyncIterator[None]:
    task = asyncio.create_task(sinks.deliver_left())
    yield
    task.cancel()
    await asyncio.wait([task])


def say(sink: StatusSink, *words: str) -> None:
    sink.emit(begun())
    for word in words:
        sink.emit(delta(word))
    sink.emit(done())


async def opened(world: World, number: int, sinks: NativeSinks | None = None) -> tuple[StatusSink, Grant]:
    """Once the control plane answers, as an attempt does."""
    made = sinks or world.sinks()
    return await patiently(lambda: made.open(attempt(world.backend, number)), world.backend.execution_id)


async def left(world: World, *words: str, end: bool = True) -> Path:
    """The file of an attempt that was closed while the control plane was away."""
    sink, _ = await world.sinks().open(attempt(world.backend))
    async with outage(world):
        say(sink, *words)
        if end:
            sink.emit(phase(EXECUTION_COMPLETED))
        await sink.aclose()
        return await world.kept()
