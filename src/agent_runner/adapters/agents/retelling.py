"""Telling again what the attempt before may not have got out before it died.

Text, and calls that may run again without harm, wait for nobody on their way to the log. So a worker may
die with events that nobody will send, though the checkpoints hold what they told. They all come after the
last call the journal knows: events are stored in order. What was stored even so is told again, which
changes nothing. Not told again are the steps of a sub-agent that has ended; its result is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

from agent_runner.adapters.agents.events import (
    completed_message,
    completed_sub_agent,
    ended_call,
    human_id,
    joined_message,
    result_of,
    started_call,
    started_message,
    started_sub_agent,
    text_of,
)
from agent_runner.adapters.agents.normalizer import SUB_AGENT_TOOL
from agent_runner.ports.agents import ResultKeeper, SteeringMessage, ToolJournal
from agent_runner.v1.events_pb2 import ExecutionEvent


async def perhaps_lost(
    messages: Sequence[Any],
    journal: ToolJournal,
    results: ResultKeeper,
    steering: Sequence[SteeringMessage],
    sub_agents: Collection[str],
) -> AsyncIterator[ExecutionEvent]:
    """What came after the last call the journal knows.

    Args:
        messages: those of the turn after its own, oldest first; results of tools among them.
        steering: messages that may have joined.
        sub_agents: names of those there are.
    """
    joined = {human_id(given.execution_id): given for given in steering}
    answers = {message.tool_call_id: message for message in messages if message.type == "tool"}
    for message in messages[_last_known(messages, journal) :]:
        if message.type == "human" and message.id in joined:
            given = joined[message.id]
            for event in joined_message(given.execution_id, given.text):
                yield event
        elif message.type == "ai":
            if not _is_known(message, journal):
                yield started_message(str(message.id), text_of(message.content))
                yield completed_message(str(message.id), "")
            for call in message.tool_calls:
                if call["id"] in answers:
                    told = _call(call, str(message.id), answers[call["id"]], journal, results, sub_agents)
                    async for event in told:
                        yield event


async def _call(
    call: Mapping[str, Any],
    message_id: str,
    answer: Any,
    journal: ToolJournal,
    results: ResultKeeper,
    sub_agents: Collection[str],
) -> AsyncIterator[ExecutionEvent]:
    """A call that has its result, as far as the journal does not know of it."""
    is_sub_agent = call["name"] == SUB_AGENT_TOOL and call["args"].get("subagent_type") in sub_agents
    recorded = journal.recorded(call["id"])
    if is_sub_agent:
        yield started_sub_agent(call)
    if recorded is None:
        yield started_call(call["id"], call["name"], call["args"], message_id, "")
    if recorded is None or not recorded.finished:
        yield ended_call(call["id"], answer, await results.shown(call["id"], result_of(answer.content)), "")
    if is_sub_agent:
        yield completed_sub_agent(call["id"], answer)


def _last_known(messages: Sequence[Any], journal: ToolJournal) -> int:
    """The place of the last message with a call the journal knows; 0 when there is none."""
    known = (place for place in reversed(range(len(messages))) if _is_known(messages[place], journal))
    return next(known, 0)


def _is_known(message: Any, journal: ToolJournal) -> bool:
    return any(journal.recorded(call["id"]) is not None for call in getattr(message, "tool_calls", ()))
