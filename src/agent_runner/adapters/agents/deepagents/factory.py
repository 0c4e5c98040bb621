"""Making deep agents: the port's specification to the engine's graph."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from deepagents import __version__, create_deep_agent
from deepagents.backends import CompositeBackend
from deepagents.middleware.subagents import GENERAL_PURPOSE_SUBAGENT
from langchain.agents.middleware import AgentMiddleware, TodoListMiddleware
from langchain_core.utils.function_calling import convert_to_openai_tool

from agent_runner.adapters.agents.answers import ArgumentWatch
from agent_runner.adapters.agents.deepagents.graphs import Graph, GraphPool, Seats, key_of
from agent_runner.adapters.agents.limits import LimitCounter
from agent_runner.adapters.agents.model_calls import ModelCalls, RetryPolicy
from agent_runner.adapters.agents.session import DeepAgentSession
from agent_runner.adapters.agents.tool_calls import ToolCalls, report_output
from agent_runner.adapters.agents.tracing import trace_when_asked
from agent_runner.adapters.sandbox.deepagents_backend import SandboxBackend
from agent_runner.ports.agents import AgentSession, AgentSpecification, Checkpoints, ToolJournal

ARTIFACTS_ROOT = "/tmp/agent-runner"  # noqa: S108 (in the sandbox)
"""Where the engine puts results and conversations that are too long for the model, to be read in parts.

Its default, the root, cannot be written; in the workspace they would be found by every search.
"""

WORKSPACE_NOTE = (
    "Your files are in /workspace, and your commands start there. Give the file tools whole paths, such as "
    "/workspace/notes.md. Only /workspace and /tmp can be written; what is there stays for the session."
)


class _Todos(TodoListMiddleware[Any]):
    """Todos without the step after each model call, which costs a checkpoint each time.

    It looks for parallel calls of `write_todos`; `ToolCalls` refuses those.
    """

    after_model = AgentMiddleware.after_model
    aafter_model = AgentMiddleware.aafter_model


class DeepAgentsFactory:
    """The `AgentFactory` of deepagents.

    Args:
        recursion_limit: the most super-steps of a turn, a round of model and tools being two or three.
            Agents in a circle are found by `loops`, so this only has to end what never would.
        retries: how model calls are tried again.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        recursion_limit: int = 10_000,
        retries: RetryPolicy = RetryPolicy(),  # noqa: B008 (a frozen value)
    ) -> None:
        self._checkpoints = checkpoints
        self._recursion_limit = recursion_limit
        self._retries = retries
        # One at a time: building is Python throughout, so more threads would only starve the loop.
        self._building = asyncio.Semaphore(1)
        self._graphs = GraphPool()
        trace_when_asked()

    @property
    def engine(self) -> str:
        return f"deepagents {__version__}"

    @asynccontextmanager
    async def open(
        self, specification: AgentSpecification, journal: ToolJournal
    ) -> AsyncIterator[AgentSession]:
        """See `AgentFactory.open`."""
        limits = LimitCounter(specification.limits, specification.used, specification.used_tool_calls)
        arguments = ArgumentWatch()
        key = key_of(specification)
        graph = self._graphs.take(key) or await self._made(specification)
        graph.seats.take(
            specification,
            ToolCalls(journal, limits, specification.mask, specification.results),
            ModelCalls(
                specification.model.name, limits, self._retries, journal, arguments, specification.steering
            ),
        )
        yield DeepAgentSession(
            graph.compiled, specification, journal, arguments, self._checkpoints, self._recursion_limit
        )
        # Not after an error or a cancel: something of that turn may still be about to end.
        self._graphs.give_back(key, graph)

    async def _made(self, specification: AgentSpecification) -> Graph:
        # The backend needs the loop it is made on; the graph takes milliseconds of schemas.
        seats = Seats(SandboxBackend(specification.sandbox, on_output=report_output))
        async with self._building:
            return Graph(await asyncio.to_thread(self._build, specification, seats), seats)

    def _build(self, specification: AgentSpecification, seats: Seats) -> Any:
        graph = create_deep_agent(
            model=specification.model.chat,
            tools=list(specification.tools),
            system_prompt=f"{specification.instructions}\n\n{WORKSPACE_NOTE}",
            middleware=[_Todos(), *seats.middleware],
            subagents=_sub_agents(specification, seats.middleware),
            backend=CompositeBackend(seats.backend, {}, artifacts_root=ARTIFACTS_ROOT),
            checkpointer=self._checkpoints.saver,
            name=specification.name or None,
        )
        _prepare_schemas(graph)
        return graph


def _prepare_schemas(graph: Any) -> None:
    """Make the tools' schemas here, off the event loop, rather than in the first model call."""
    for tool in graph.nodes["tools"].bound.tools_by_name.values():
        convert_to_openai_tool(tool)


def _sub_agents(specification: AgentSpecification, guards: list[AgentMiddleware[Any, Any, Any]]) -> Any:
    """The engine's specifications; the general-purpose one is spelled out to get our guards as well."""
    given: list[dict[str, Any]] = [
        {
            "name": sub_agent.name,
            "description": sub_agent.description,
            "system_prompt": f"{sub_agent.instructions}\n\n{WORKSPACE_NOTE}",
            "tools": list(sub_agent.tools),
            "middleware": list(guards),
        }
        for sub_agent in specification.sub_agents
    ]
    general: dict[str, Any] = {
        **GENERAL_PURPOSE_SUBAGENT,
        "system_prompt": f"{GENERAL_PURPOSE_SUBAGENT['system_prompt']}\n\n{WORKSPACE_NOTE}",
        "tools": list(specification.tools),
        "middleware": list(guards),
    }
    if all(sub_agent["name"] != general["name"] for sub_agent in given):
        given.append(general)
    return given
