"""Compiled graphs, kept from one turn for the next of the same agent.

Building a deep agent is tens of milliseconds of schemas. A graph of ours holds nothing of a turn but
what sits in its `Seats`: model, sandbox, and the guards with their journal and counters. A turn has a
graph for itself, so the seats are whose turn it is; a graph goes back only after a turn that ended well.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langgraph.prebuilt.tool_node import ToolCallRequest

from agent_runner.adapters.agents.model_calls import ModelCalls
from agent_runner.adapters.agents.tool_calls import Handler, Result, ToolCalls
from agent_runner.adapters.sandbox.deepagents_backend import SandboxBackend
from agent_runner.ports.agents import AgentSpecification

MOST_IDLE = 64
"""Graphs kept; one takes about a quarter of a megabyte."""

Key = tuple[object, ...]


class _ToolSeat(AgentMiddleware[Any, Any, Any]):
    now: ToolCalls

    async def awrap_tool_call(self, request: ToolCallRequest, handler: Handler) -> Result:
        return await self.now.awrap_tool_call(request, handler)


class _ModelSeat(AgentMiddleware[Any, Any, Any]):
    now: ModelCalls
    chat: Any

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        return await self.now.awrap_model_call(request.override(model=self.chat), handler)


class Seats:
    """What a graph has of the turn that runs on it."""

    def __init__(self, backend: SandboxBackend) -> None:
        self.backend = backend
        self._tools, self._model = _ToolSeat(), _ModelSeat()

    @property
    def middleware(self) -> list[AgentMiddleware[Any, Any, Any]]:
        """For the agent and each of its sub-agents."""
        return [self._tools, self._model]

    def take(self, specification: AgentSpecification, tools: ToolCalls, model: ModelCalls) -> None:
        """Begin a turn."""
        self.backend.use(specification.sandbox)
        self._tools.now, self._model.now = tools, model
        self._model.chat = specification.model.chat


class Graph:
    """A compiled graph and its seats."""

    def __init__(self, compiled: Any, seats: Seats) -> None:
        self.compiled = compiled
        self.seats = seats


class GraphPool:
    """Graphs nobody uses now, those used last kept longest."""

    def __init__(self, most: int = MOST_IDLE) -> None:
        self._most = most
        self._idle: OrderedDict[int, tuple[Key, Graph]] = OrderedDict()

    def take(self, key: Key | None) -> Graph | None:
        """A graph of this key, for the caller alone; None when one must be built."""
        for number, (known, graph) in reversed(self._idle.items()) if key is not None else ():
            if known == key:
                del self._idle[number]
                return graph
        return None

    def give_back(self, key: Key | None, graph: Graph) -> None:
        if key is None:
            return
        self._idle[id(graph)] = (key, graph)
        while len(self._idle) > self._most:
            self._idle.popitem(last=False)


def key_of(specification: AgentSpecification) -> Key | None:
    """What two turns must share to use one graph; None for agents with tools that end with their turn."""
    if specification.tools or any(sub_agent.tools for sub_agent in specification.sub_agents):
        return None
    sub_agents = tuple((sub.name, sub.description, sub.instructions) for sub in specification.sub_agents)
    model = specification.model
    return (specification.name, specification.instructions, model.name, type(model.chat), sub_agents)
