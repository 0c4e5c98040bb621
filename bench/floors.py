"""What the product is measured against: the bare engine loop, and a workflow that does nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from deepagents import create_deep_agent
from langchain.agents.middleware import TodoListMiddleware
from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from agent_runner.adapters.models.resolver import DefaultModelResolver
from agent_runner.v1.options_pb2 import ModelOptions

MODES = ("messages", "updates", "tasks", "custom")


@dataclass(frozen=True, slots=True)
class BareTurn:
    """Seconds of one turn of the bare loop, until its first text, and of CPU."""

    seconds: float
    first_event: float
    items: int
    cpu: float


async def bare_turn(script: Path) -> BareTurn:
    """The same deep agent on the same script, with nothing around it: no sandbox, no checkpoints.

    Building the graph is not counted: a service that ran this loop would build it before.
    """
    model = DefaultModelResolver({}).resolve(ModelOptions(model_name=f"script:{script}"))
    graph = create_deep_agent(
        model=model.chat, system_prompt="Do what the script says.", middleware=[TodoListMiddleware()]
    )
    began, cpu = time.perf_counter(), time.process_time()
    first, items = 0.0, 0
    stream = graph.astream(
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


@workflow.defn(name="bench/no-op", sandboxed=False)
class NoOp:
    """A workflow without a step."""

    @workflow.run
    async def run(self) -> None:
        return None


async def no_op_seconds(client: Client, runs: int) -> list[float]:
    """Start to result of the no-op workflow, one after the other, with a worker in this process."""
    seconds = []
    worker = Worker(
        client,
        task_queue="bench-no-op",
        workflows=[NoOp],
        workflow_runner=UnsandboxedWorkflowRunner(),
        build_id="bench",
    )
    async with worker:
        for number in range(runs):
            began = time.perf_counter()
            await client.execute_workflow(NoOp.run, id=f"bench-{number}-{began}", task_queue="bench-no-op")
            seconds.append(time.perf_counter() - began)
    return seconds
