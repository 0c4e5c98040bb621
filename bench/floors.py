"""What the product is measured against: the bare engine loop, and Temporal with nothing to do."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from deepagents import create_deep_agent
from langchain.agents.middleware import TodoListMiddleware
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from agent_runner.adapters.models.resolver import DefaultModelResolver
from agent_runner.bootstrap.process import settle
from agent_runner.ports.models import ModelResolver
from agent_runner.v1.options_pb2 import ModelOptions
from bench.rows import Floor, in_ms, quantile

MODES = ("messages", "updates", "tasks", "custom")


@dataclass(frozen=True, slots=True)
class BareTurn:
    """Seconds of one turn of the bare loop, until its first text, and of CPU."""

    seconds: float
    first_event: float
    items: int
    cpu: float


class BareLoop:
    """The same deep agent on the same script, with nothing around it: no sandbox, no checkpoints.

    The graph is built here, once for all turns, as a service that ran this loop would do.
    """

    def __init__(self, script: Path, models: ModelResolver | None = None) -> None:
        resolver = models or DefaultModelResolver({})
        model = resolver.resolve(ModelOptions(model_name=f"script:{script}"))
        self._graph: Any = create_deep_agent(
            model=model.chat, system_prompt="Do what the script says.", middleware=[TodoListMiddleware()]
        )
        # As the product's processes do, or the bare loop alone would stop for garbage.
        settle()

    async def turn(self) -> BareTurn:
        """Run one turn; many may run at once."""
        began, cpu = time.perf_counter(), time.process_time()
        first, items = 0.0, 0
        stream = self._graph.astream(
            {"messages": [{"role": "user", "content": "go"}]},
            {"recursion_limit": 10_000},
            stream_mode=list(MODES),
            subgraphs=True,
        )
        async for _, mode, _ in stream:
            items += 1
            if mode == "messages" and not first:
                first = time.perf_counter() - began
        return BareTurn(time.perf_counter() - began, first, items, time.process_time() - cpu)


def bare_floor(seconds: list[float], share: float = 0.5) -> Floor:
    return Floor("bare loop", quantile(in_ms(seconds), share), "ms")


@workflow.defn(name="bench/no-op", sandboxed=False)
class NoOp:
    """A workflow without a step."""

    @workflow.run
    async def run(self) -> None:
        return None


@dataclass(slots=True)
class _Waiting:
    """An activity that waits to be cancelled."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    @activity.defn(name="bench/wait")
    async def wait(self) -> None:
        self.begun.set()
        try:
            while True:
                activity.heartbeat()
                await asyncio.sleep(0.5)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@workflow.defn(name="bench/wait", sandboxed=False)
class Waits:
    """A workflow of one activity that waits."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(
            "bench/wait",
            start_to_close_timeout=timedelta(minutes=5),
            heartbeat_timeout=timedelta(seconds=5),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )


class BareTemporal:
    """A Temporal service with a worker of this process that does nothing worth while."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._queue = f"bench-{uuid.uuid4()}"

    async def no_ops(self, runs: int) -> list[float]:
        """Seconds from start to result of the no-op workflow, one after the other."""
        seconds = []
        async with self._worker(workflows=[NoOp]):
            for number in range(runs):
                began = time.perf_counter()
                await self._client.execute_workflow(
                    NoOp.run, id=f"{self._queue}-{number}", task_queue=self._queue
                )
                seconds.append(time.perf_counter() - began)
        return seconds

    async def history_bytes(self) -> int:
        """What the history of the no-op workflow weighs."""
        await self.no_ops(1)
        handle = self._client.get_workflow_handle(f"{self._queue}-0")
        described = await handle.describe()
        return int(described.raw_description.workflow_execution_info.history_size_bytes)

    async def cancels(self, runs: int) -> list[float]:
        """Seconds from the cancel call to the cancel of an activity that waits."""
        seconds = []
        for number in range(runs):
            waiting = _Waiting()
            async with self._worker(workflows=[Waits], activities=[waiting.wait]):
                handle = await self._client.start_workflow(
                    Waits.run, id=f"{self._queue}-wait-{number}", task_queue=self._queue
                )
                await waiting.begun.wait()
                began = time.perf_counter()
                await handle.cancel()
                await waiting.cancelled.wait()
                seconds.append(time.perf_counter() - began)
        return seconds

    def _worker(self, **runs: Any) -> Worker:
        second = timedelta(seconds=1)
        return Worker(
            self._client,
            task_queue=self._queue,
            workflow_runner=UnsandboxedWorkflowRunner(),
            build_id="bench",
            max_heartbeat_throttle_interval=second,
            default_heartbeat_throttle_interval=second,
            **runs,
        )
