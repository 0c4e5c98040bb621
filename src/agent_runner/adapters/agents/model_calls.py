"""Around each model call: limits, loops, retries, and errors in words for people. Any LangChain engine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain.agents.middleware.types import ModelRequest, ModelResponse
from langchain_core.exceptions import ContextOverflowError, ModelConnectionError
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.config import get_config, get_stream_writer
from langgraph.errors import GraphBubbleUp

from agent_runner.adapters.agents.answers import ArgumentWatch, repair
from agent_runner.adapters.agents.events import human_id, message_id, result_of, usage_from
from agent_runner.adapters.agents.limits import LimitCounter
from agent_runner.adapters.agents.loops import NOTICE, find_loop
from agent_runner.adapters.agents.signals import Joined, Warned, all_handed_on
from agent_runner.adapters.models.failures import Diagnosis, Trouble, diagnose, explain
from agent_runner.adapters.models.prices import cost_of, price_of
from agent_runner.errors import AgentRunnerError, LimitReachedError
from agent_runner.ports.agents import SteeringMessage, ToolJournal, unsteered


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a model call is tried again: the only place where it is.

    Attributes:
        attempts: calls in all.
        first_delay: seconds before the second call; doubled each time, with up to a quarter of chance.
        longest_delay: seconds; a provider that asks for a longer wait is given up.
    """

    attempts: int = 5
    first_delay: float = 1.0
    longest_delay: float = 60.0

    def delay(self, attempt: int, diagnosis: Diagnosis) -> float | None:
        """Seconds to wait after the failed call number `attempt`; None: do not try again."""
        if not diagnosis.worth_retrying or attempt >= self.attempts:
            return None
        if diagnosis.retry_after is not None:
            return diagnosis.retry_after if diagnosis.retry_after <= self.longest_delay else None
        chance = 1 + random.random() / 4  # noqa: S311 (spreads retries, guards nothing)
        return min(self.first_delay * 2.0 ** (attempt - 1) * chance, self.longest_delay)


class ModelCalls(AgentMiddleware[Any, Any, Any]):
    """Guards the model calls of an agent and its sub-agents.

    Args:
        model: `provider:model`, for errors and prices.
        steering: messages that are to join the turn.
        journal: knows the tool calls of earlier attempts.
        arguments: has seen every piece streamed before a barrier is passed.
    """

    def __init__(
        self,
        model: str,
        limits: LimitCounter,
        retries: RetryPolicy,
        journal: ToolJournal,
        arguments: ArgumentWatch,
        steering: Callable[[], Sequence[SteeringMessage]] = unsteered,
    ) -> None:
        super().__init__()
        self._journal = journal
        self._steering = steering
        self._arguments = arguments
        self._call_ids: set[str] = set()
        self._told: set[str] = set()
        self._joined: set[str] = set()
        self._model = model
        self._price = price_of(model)
        self._limits = limits
        self._retries = retries

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        self._limits.before_model_call()
        joining = self._joining(request)
        request = _unlooped(request)
        request = request.override(messages=[*request.messages, *joining]) if joining else request
        attempt = 0
        while True:
            attempt += 1
            try:
                response = await handler(request)
                _check_whole(response)
            except (AgentRunnerError, GraphBubbleUp, ContextOverflowError):
                raise  # a conversation too long is the engine's to shorten, and the session's to explain
            except Exception as error:  # noqa: BLE001 (whatever a client library raises is explained)
                await self._wait_or_raise(error, attempt)
            else:
                await self._finish(request, response)
                # Kept with the answer: a checkpoint has both or neither.
                response.result = [*joining, *response.result]
                self._joined.update(str(message.id) for message in joining)
                return response

    def _joining(self, request: ModelRequest[Any]) -> list[AnyMessage]:
        """Messages for the agent itself that are not in its conversation yet."""
        steering = self._steering()
        if not steering or "|" in str(get_config()["metadata"].get("langgraph_checkpoint_ns", "")):
            return []  # nobody steers, or a sub-agent asks
        # Not of the request alone, from which the engine may have left old messages out.
        there = {message.id for message in (*request.messages, *request.state.get("messages", ()))}
        joining: list[AnyMessage] = []
        for given in steering:
            message_id = human_id(given.execution_id)
            if message_id in there or message_id in self._joined:
                continue
            joining.append(HumanMessage(given.text, id=message_id))
            if message_id not in self._told:  # the engine may ask again, with a shorter conversation
                self._told.add(message_id)
                get_stream_writer()(Joined(given.execution_id, given.text))
        return joining

    async def _wait_or_raise(self, error: Exception, attempt: int) -> None:
        diagnosis = diagnose(error)
        if diagnosis.trouble is Trouble.TOO_LONG:
            raise ContextOverflowError(diagnosis.quote) from error
        delay = self._retries.delay(attempt, diagnosis)
        if delay is None:
            raise explain(diagnosis, self._model, error) from error
        busy = "is busy" if diagnosis.trouble is Trouble.BUSY else "did not answer"
        get_stream_writer()(Warned(f"The provider of {self._model} {busy}; asked again."))
        await asyncio.sleep(delay)

    async def _finish(self, request: ModelRequest[Any], response: ModelResponse[Any]) -> None:
        """Put the answer right, give it the id its events have, and count it."""
        namespace = str(get_config()["metadata"].get("langgraph_checkpoint_ns", ""))
        for message in response.result:
            if not isinstance(message, AIMessage):
                continue
            if _end_of(message) in _CUT_AT_THE_LIMIT:
                get_stream_writer()(Warned("The model's answer was cut at its limit of tokens."))
            if message.tool_calls or message.invalid_tool_calls:
                await all_handed_on(get_stream_writer())
            before = {call["id"] for m in request.messages for call in getattr(m, "tool_calls", ())}
            repair(
                message,
                message_id(namespace.rpartition(":")[2]),
                partial(self._is_taken, before),
                self._arguments.unreadable,
            )
            self._call_ids.update(call["id"] or "" for call in message.tool_calls)
            usage = usage_from(getattr(message, "usage_metadata", None))
            usage.cost_usd = cost_of(self._price, usage)
            self._limits.used(usage)

    def _is_taken(self, before: Container[str | None], call_id: str) -> bool:
        """Whether this id was used before: in the conversation, by a sub-agent, by an earlier attempt."""
        return call_id in before or call_id in self._call_ids or self._journal.recorded(call_id) is not None


def _unlooped(request: ModelRequest[Any]) -> ModelRequest[Any]:
    """The request, with a notice for a model that goes in circles.

    Raises:
        LimitReachedError: it was told, and still does.
    """
    loop = find_loop(request.messages)
    if loop is None:
        return request
    if loop.to_be_stopped:
        raise LimitReachedError("repeated steps", loop.rounds)
    get_stream_writer()(Warned("The agent repeats the same calls with the same results; it was told so."))
    *before, last = request.messages
    content = f"{result_of(last.content)}{NOTICE.format(rounds=loop.rounds)}"
    # Only in this request: the conversation that is kept stays as it was.
    return request.override(messages=[*before, last.model_copy(update={"content": content})])


# These always say why an answer ended; one that does not say was cut off on the way.
_TELL_THE_END = ("openai", "anthropic")
_CUT_AT_THE_LIMIT = ("length", "max_tokens", "max_output_tokens")


def _end_of(message: Any) -> str:
    """Why an answer ended, in the provider's word; empty when it does not say."""
    metadata = message.response_metadata
    reason = metadata.get("finish_reason") or metadata.get("stop_reason")
    details = metadata.get("incomplete_details") or {}
    return str(reason or details.get("reason") or metadata.get("status") or "")


def _check_whole(response: ModelResponse[Any]) -> None:
    """Raises ModelConnectionError for an answer whose stream ended before it did."""
    for message in response.result:
        provider = getattr(message, "response_metadata", {}).get("model_provider")
        if message.type == "ai" and provider in _TELL_THE_END and not _end_of(message):
            raise ModelConnectionError("the answer was cut off")
