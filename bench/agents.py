"""What making an agent costs: CPU of the worker, before its first model call, on the engine that is here."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from langchain_core.tools import StructuredTool
from langgraph.checkpoint.memory import InMemorySaver

from agent_runner.adapters.models.resolver import DefaultModelResolver
from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.bootstrap.engines import agent_factory
from agent_runner.ports.agents import AgentSpecification, SubAgentSpecification
from agent_runner.ports.sandboxes import SandboxSpec
from agent_runner.v1.options_pb2 import ModelOptions
from bench.plans import Plan
from bench.rows import Floor, Row, in_ms, row_of

TOOLS, SUB_AGENTS = 10, 2
BUILDS = 12


class _Memory:
    """Checkpoints nobody reads."""

    saver = InMemorySaver()


async def building(folder: Path, plan: Plan) -> list[Row]:
    """An agent with ten tools and two sub-agents; and one without, whose graph is kept between turns."""
    provider = LocalProvider(folder / "sandboxes")
    engine = "graphton" if find_spec("graphton") else "deepagents"
    factory: Any = agent_factory(engine, _Memory())  # type: ignore[arg-type]
    try:
        sandbox = await provider.ensure(SandboxSpec(session_id="bench"))
        rows = []
        for name, tools in ((f"{TOOLS} tools, {SUB_AGENTS} sub-agents", TOOLS), ("no tools of its own", 0)):
            first, *later = in_ms([await _built(factory, sandbox, tools) for _ in range(BUILDS)])
            floors = (Floor("the first of all", first, "ms"),)
            rows.append(row_of(f"CPU to make an agent on {engine}, {name}", later, "ms", floors=floors))
        return rows
    finally:
        await provider.delete("bench")
        await provider.aclose()


async def _built(factory: Any, sandbox: Any, tools: int) -> float:
    """Seconds of CPU until a session of a fresh specification is there."""
    model = DefaultModelResolver({}).resolve(ModelOptions(model_name="script:echo"))
    offered = [_tool(number) for number in range(tools)]
    subs = [
        SubAgentSpecification(f"helper-{number}", "Helps.", "You help.", offered[number::2])
        for number in range(SUB_AGENTS if tools else 0)
    ]
    specification = AgentSpecification("bench", "You work.", model, sandbox, offered, subs)
    began = time.process_time()
    async with factory.open(specification, None):
        return time.process_time() - began


def _tool(number: int) -> StructuredTool:
    async def run(text: str, count: int = 1, exact: bool = False) -> str:
        return text

    return StructuredTool.from_function(
        coroutine=run, name=f"tool_{number}", description=f"Does the thing of number {number}."
    )
