"""One LangGraph agent and one turn of it: fresh, or gone on with from its checkpoint. For either engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

from deepagents.middleware.subagents import GENERAL_PURPOSE_SUBAGENT
from langchain_core.messages import HumanMessage
from langgraph.errors import GraphDrained, GraphRecursionError
from langgraph.runtime import RunControl

from agent_runner.adapters.agents.answers import ArgumentWatch
from agent_runner.adapters.agents.events import changed_todos
from agent_runner.adapters.agents.normalizer import (
    TODO_TOOL,
    Normalizer,
    written,
    written_messages,
)
from agent_runner.adapters.agents.retelling import perhaps_lost
from agent_runner.adapters.agents.signals import Barrier
from agent_runner.adapters.models.failures import Trouble, diagnose, explain
from agent_runner.adapters.models.prices import cost_of, price_of
from agent_runner.errors import AgentRunnerError, LimitReachedError
from agent_runner.ports.agents import AgentSpecification, Checkpoints, DrainedError, ToolJournal, Turn
from agent_runner.v1.events_pb2 import ExecutionEvent

STREAM_MODES = ["messages", "tasks", "custom"]
EXECUTION_ID = "execution_id"


class Standing(Enum):
    """How far the checkpoints say a turn has come."""

    NEW = "new"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Past:
    """What the checkpoints hold of a turn.

    Attributes:
        messages: those after the turn's own message, oldest first.
        pending: results of tools that finished in the step that did not.
    """

    standing: Standing
    messages: list[Any] = field(default_factory=list)
    pending: list[Any] = field(default_factory=list)
    todos: list[Any] = field(default_factory=list)


class DeepAgentSession:
    """The `AgentSession` of deepagents."""

    def __init__(
        self,
        graph: Any,
        specification: AgentSpecification,
        journal: ToolJournal,
        arguments: ArgumentWatch,
        checkpoints: Checkpoints,
        recursion_limit: int,
    ) -> None:
        self._graph = graph
        self._specification = specification
        self._journal = journal
        self._arguments = arguments
        self._checkpoints = checkpoints
        self._recursion_limit = recursion_limit
        self._control = RunControl()
        names = {sub_agent.name for sub_agent in specification.sub_agents}
        self._sub_agents = names | {GENERAL_PURPOSE_SUBAGENT["name"]}

    async def unfinished(self, turn: Turn) -> bool:
        """See `AgentSession.unfinished`."""
        return (await self._past(turn)).standing is not Standing.NEW

    async def run(self, turn: Turn) -> AsyncIterator[ExecutionEvent]:
        """See `AgentSession.run`."""
        holding = await self._checkpoints.hold(turn)
        past = await self._past(turn)
        async for event in self._perhaps_lost(past):
            yield event
        if past.standing is Standing.FINISHED:
            return
        given = None
        if past.standing is Standing.NEW:
            given = {"messages": [HumanMessage(turn.message, id=f"human-{turn.execution_id}")]}
        try:
            async with aclosing(self._events(given, turn, past, holding)) as events:
                async for event in events:
                    yield event
        except GraphDrained as drained:
            raise DrainedError(str(drained)) from drained
        except GraphRecursionError as error:
            raise LimitReachedError("steps", self._recursion_limit) from error
        except AgentRunnerError:
            raise
        except Exception as error:
            # The engine's own model calls, such as for a summary, fail here with the client's errors.
            diagnosis = diagnose(error)
            if diagnosis.trouble is Trouble.BROKEN:
                raise
            raise explain(diagnosis, self._specification.model.name, error) from error

    def request_drain(self, reason: str) -> None:
        """See `AgentSession.request_drain`."""
        self._control.request_drain(reason)

    async def _events(
        self, given: Any, turn: Turn, past: Past, holding: Mapping[str, Any]
    ) -> AsyncGenerator[ExecutionEvent, None]:
        specification = self._specification
        cost = partial(cost_of, price_of(specification.model.name))
        done = [message.tool_call_id for message in past.pending if message.type == "tool"]
        normalizer = Normalizer(self._sub_agents, cost, self._arguments, done)
        stream = self._graph.astream(
            given,
            self._config(turn, holding),
            stream_mode=STREAM_MODES,
            subgraphs=True,
            # A step's checkpoint is on disk before the next step begins: were it not, a crash could lose
            # the message that asked for a tool which has run, and the model would ask again.
            durability="sync",
            control=self._control,
        )
        async with aclosing(stream) as items:
            async for namespace, mode, data in items:
                if type(data) is Barrier:
                    data.passed.set()
                    # Who waited goes first: calls are told of in the order of their message.
                    await asyncio.sleep(0)
                    continue
                for event in normalizer.events(namespace, mode, data):
                    yield event

    def _config(self, turn: Turn, holding: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "configurable": {"thread_id": turn.thread_id, **holding},
            "recursion_limit": self._recursion_limit,
            "metadata": {EXECUTION_ID: turn.execution_id},
        }

    async def _past(self, turn: Turn) -> Past:
        config = {"configurable": {"thread_id": turn.thread_id, "checkpoint_ns": ""}}
        saved = await self._checkpoints.saver.aget_tuple(config)
        if saved is None or saved.metadata.get(EXECUTION_ID) != turn.execution_id:
            return Past(Standing.NEW)
        state = await self._graph.aget_state({"configurable": {"thread_id": turn.thread_id}})
        messages = _since(state.values.get("messages", []), f"human-{turn.execution_id}")
        results = [task.result for task in state.tasks if isinstance(task.result, dict)]
        return Past(
            # Not `next` alone: it leaves out tasks whose results are kept while their step is not closed.
            Standing.UNFINISHED if state.tasks or state.next else Standing.FINISHED,
            messages,
            [message for result in results for message in written_messages(result)],
            _todos_of_the_turn(state.values, messages, results),
        )

    async def _perhaps_lost(self, past: Past) -> AsyncIterator[ExecutionEvent]:
        specification = self._specification
        told = perhaps_lost(
            [*past.messages, *past.pending],
            self._journal,
            specification.results,
            specification.steering(),
            self._sub_agents,
        )
        async for event in told:
            yield event
        if past.todos:
            yield changed_todos(past.todos)


def _since(messages: list[Any], message_id: str) -> list[Any]:
    places = [place for place, message in enumerate(messages) if message.id == message_id]
    return messages[places[-1] + 1 :] if places else []


def _todos_of_the_turn(
    values: Mapping[str, Any], messages: list[Any], results: list[dict[str, Any]]
) -> list[Any]:
    """The newest todos, if this turn wrote any: the conversation keeps those of earlier turns as well."""
    for result in results:
        if todos := written(result, "todos"):
            return list(todos[-1])
    wrote = any(message.type == "tool" and message.name == TODO_TOOL for message in messages)
    return list(values.get("todos") or []) if wrote else []
