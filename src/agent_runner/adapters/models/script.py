"""The scripted model: answers from a YAML file, streamed as a provider would.

It keeps nothing between calls: which turn and step it is at follows from the messages it is given. So
parallel runs, sub-agents and resumed runs get what they should.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core import exceptions as known
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, ensure_config
from pydantic import ConfigDict, Field

from agent_runner.adapters.models.script_files import (
    Call,
    Failure,
    Script,
    Step,
    Turn,
    locate_script,
    read_script,
)

_TOKEN = re.compile(r"\s*\S{1,6}|\s+")
_TEMPLATE = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_MOST_REMEMBERED_FAILURES = 4096

# The kinds without a code are errors below HTTP.
_STATUS_CODES = {
    "rate_limit": 429,
    "overloaded": 529,
    "unavailable": 503,
    "no_key": 401,
    "no_credit": 402,
    "unknown_model": 404,
    "too_long": 400,
}
_WORDS = {
    "rate_limit": "rate limit exceeded",
    "overloaded": "overloaded",
    "unavailable": "service unavailable",
    "dropped": "connection closed in the middle of the answer",
    "timeout": "request timed out",
    "no_key": "invalid api key",
    "no_credit": "your credit balance is too low",
    "unknown_model": "model not found",
    "too_long": "prompt is too long: maximum context length exceeded",
    "bug": "unexpected error in the model client",
}


class ScriptedFailureError(Exception):
    """What a script's `fail` raises; shaped like the error of a provider's client."""

    def __init__(self, failure: Failure) -> None:
        self.kind = failure.kind
        self.retry_after = failure.retry_after
        self.status_code = _STATUS_CODES.get(failure.kind)
        super().__init__(failure.message or _WORDS[failure.kind])


class _OverflowError(ScriptedFailureError, known.ContextOverflowError):
    """As the engines know it: they shorten the conversation and ask again."""


class _DroppedError(ScriptedFailureError, known.ModelConnectionError):
    """The stream ended early."""


class _TimedOutError(ScriptedFailureError, known.ModelTimeoutError):
    """No answer in time."""


_CLASSES: Mapping[str, type[ScriptedFailureError]] = {
    "too_long": _OverflowError,
    "dropped": _DroppedError,
    "timeout": _TimedOutError,
}


class FailureCounter:
    """How often a script's `fail` with `times` has failed, per place in a conversation.

    Kept over executions of a worker, since a retried execution gets a new model.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[str, int] = OrderedDict()

    def fails(self, failure: Failure, place: str) -> bool:
        """Whether this call fails; counts it."""
        if not failure.times:
            return True
        seen = self._seen.pop(place, 0)
        if seen >= failure.times:
            return False  # and forgotten, so that the next conversation alike fails again
        self._seen[place] = seen + 1
        while len(self._seen) > _MOST_REMEMBERED_FAILURES:
            self._seen.popitem(last=False)
        return True


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the script a conversation is."""

    turn: Turn | None
    turn_number: int
    step_number: int
    step: Step
    values: dict[str, str]
    key: str


class ScriptedChatModel(BaseChatModel):
    """A chat model that follows a script."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    script: Script
    script_name: str = "script"
    failures: FailureCounter = Field(default_factory=FailureCounter, exclude=True, repr=False)

    @property
    def _llm_type(self) -> str:
        return "script"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return {"ls_provider": "script", "ls_model_name": self.script_name, "ls_model_type": "chat"}

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The script knows its tools by name, so there is nothing to bind."""
        return self.bind(tool_choice=tool_choice) if tool_choice else self.bind()

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        place = self._place(messages, _namespace())
        if place.step.fail and self.failures.fails(place.step.fail, place.key):
            raise _failure(place.step.fail)
        return _joined(chunk for chunk, _ in self._chunks(place, messages))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _joined([chunk async for chunk in self._timed(messages, _namespace())])

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for message in self._timed(messages, _namespace()):
            chunk = ChatGenerationChunk(message=message)
            if run_manager:
                await run_manager.on_llm_new_token(message.text, chunk=chunk)
            yield chunk

    async def _timed(self, messages: list[BaseMessage], namespace: str) -> AsyncIterator[AIMessageChunk]:
        place = self._place(messages, namespace)
        timing, defaults = place.step, self.script.defaults
        await _pause(_first(timing.first_token_ms, defaults.first_token_ms, 0.0))
        delay = _first(timing.delay_ms, defaults.delay_ms, 0.0)
        failure = place.step.fail
        if failure and not self.failures.fails(failure, place.key):
            failure = None
        sent = 0
        for chunk, tokens in self._chunks(place, messages):
            if failure and sent >= failure.after_tokens:
                raise _failure(failure)
            await _pause(delay * tokens)
            yield chunk
            sent += tokens

    def _chunks(self, place: _Place, messages: list[BaseMessage]) -> Iterator[tuple[AIMessageChunk, int]]:
        """The answer in pieces, each with its number of tokens."""
        step = place.step
        size = _first(step.chunk_tokens, self.script.defaults.chunk_tokens, 3)
        written = 0
        blocks = bool(step.thinking)
        for text in _pieces(_filled(step.thinking, place.values), size):
            yield (
                AIMessageChunk(content=[{"type": "thinking", "thinking": text, "index": 0}]),
                _tokens(text),
            )
            written += _tokens(text)
        for text in _pieces(_filled(step.text, place.values), size):
            content: Any = [{"type": "text", "text": text, "index": 1}] if blocks else text
            yield AIMessageChunk(content=content), _tokens(text)
            written += _tokens(text)
        for index, call in enumerate(step.calls):
            for piece, count in _call_chunks(call, index, place, size):
                yield piece, count
                written += count
        yield self._last_chunk(step, messages, written), 0

    def _last_chunk(self, step: Step, messages: list[BaseMessage], written: int) -> AIMessageChunk:
        usage = step.usage
        read = usage.input if usage.input is not None else sum(len(m.text) // 4 + 4 for m in messages)
        written = usage.output if usage.output is not None else written
        return AIMessageChunk(
            content="",
            response_metadata={
                "model_name": self.script_name,
                "model_provider": "script",
                "finish_reason": "tool_calls" if step.calls else "stop",
            },
            usage_metadata=UsageMetadata(
                input_tokens=read,
                output_tokens=written,
                total_tokens=read + written,
                input_token_details={"cache_read": usage.cached},
            ),
            chunk_position="last",
        )

    def _place(self, messages: Sequence[BaseMessage], namespace: str) -> _Place:
        humans = [m for m in messages if _is_from_user(m)]
        since = 0
        for message in reversed(messages):
            if _is_from_user(message):
                break
            since += isinstance(message, AIMessage)
        values = _values(messages, humans)
        turn = self._turn(messages, values["message"], max(len(humans), 1))
        step = _step(turn, since)
        seed = f"{namespace}\n{values['message']}"
        key = f"{hashlib.sha256(seed.encode()).hexdigest()[:8]}_{len(humans)}_{since + 1}"
        return _Place(turn, len(humans), since + 1, step, values, key)

    def _turn(self, messages: Sequence[BaseMessage], message: str, number: int) -> Turn | None:
        system = messages[0].text if messages and messages[0].type == "system" else ""
        for turn in self.script.turns:
            when = turn.when
            if (
                when
                and (not when.turn or when.turn == number)
                and re.search(when.message, message)
                and re.search(when.system, system)
            ):
                return turn
        in_order = [turn for turn in self.script.turns if turn.when is None]
        return in_order[min(number, len(in_order)) - 1] if in_order else None


class ScriptLibrary:
    """Scripts by name, read again when their file has changed."""

    def __init__(self) -> None:
        self._read: dict[Path, tuple[int, Script]] = {}
        self._failures = FailureCounter()

    def open(self, name: str) -> ScriptedChatModel:
        """A model for `script:NAME`, where NAME is a path or the name of a packaged script.

        Raises:
            ModelError: no such script, or it is wrong.
        """
        path = locate_script(name)
        changed = path.stat().st_mtime_ns
        if path not in self._read or self._read[path][0] != changed:
            self._read[path] = (changed, read_script(path))
        return ScriptedChatModel(script=self._read[path][1], script_name=path.stem, failures=self._failures)


def _failure(failure: Failure) -> ScriptedFailureError:
    return _CLASSES.get(failure.kind, ScriptedFailureError)(failure)


def _is_from_user(message: BaseMessage) -> bool:
    # The engine's summaries are human messages as well.
    return isinstance(message, HumanMessage) and not message.additional_kwargs.get("lc_source")


def _namespace() -> str:
    """Which sub-agent asks: the graph's namespace without its last part; empty for the agent itself."""
    metadata = ensure_config().get("metadata") or {}
    return str(metadata.get("langgraph_checkpoint_ns", "")).rpartition("|")[0]


def _values(messages: Sequence[BaseMessage], humans: Sequence[BaseMessage]) -> dict[str, str]:
    results = [m.text for m in messages if isinstance(m, ToolMessage)]
    return {
        "message": humans[-1].text if humans else "",
        "previous_message": humans[-2].text if len(humans) > 1 else "",
        "turn": str(len(humans)),
        "last_tool_result": results[-1] if results else "",
    }


def _step(turn: Turn | None, done: int) -> Step:
    if turn is None:
        return Step(text="The script has no turn for this message.")
    if turn.loop:
        return turn.steps[done % len(turn.steps)]
    if done < len(turn.steps):
        return turn.steps[done]
    return Step(text="The script has no further step.")


def _filled(value: Any, values: dict[str, str]) -> Any:
    """Templates in strings at any depth replaced; unknown ones stay."""
    if isinstance(value, str):
        return _TEMPLATE.sub(lambda found: values.get(found[1], found[0]), value)
    if isinstance(value, dict):
        return {key: _filled(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, values) for item in value]
    return value


def _call_chunks(call: Call, index: int, place: _Place, size: int) -> Iterator[tuple[AIMessageChunk, int]]:
    """Name and id first, the arguments after in fragments, as providers send them."""
    call_id = call.id or f"call_{place.key}_{index + 1}"
    first = tool_call_chunk(name=call.name, args="", id=call_id, index=index)
    yield AIMessageChunk(content="", tool_call_chunks=[first]), 1
    if call.raw_args is not None:
        arguments = call.raw_args
    else:
        arguments = json.dumps(_filled(call.args, place.values), ensure_ascii=False)
    for text in _pieces(arguments, size):
        fragment = tool_call_chunk(name=None, args=text, id=None, index=index)
        yield AIMessageChunk(content="", tool_call_chunks=[fragment]), _tokens(text)


def _pieces(text: str, tokens: int) -> Iterator[str]:
    found = _TOKEN.findall(text)
    for start in range(0, len(found), tokens):
        yield "".join(found[start : start + tokens])


def _tokens(text: str) -> int:
    return len(_TOKEN.findall(text))


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


async def _pause(milliseconds: float) -> None:
    # Zero still gives others a turn, as a socket would.
    await asyncio.sleep(milliseconds / 1000)


def _joined(chunks: Iterator[AIMessageChunk] | Sequence[AIMessageChunk]) -> ChatResult:
    whole: AIMessageChunk | None = None
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    assert whole is not None, "the last chunk always comes"
    message = AIMessage(
        content=whole.content,
        tool_calls=whole.tool_calls,
        invalid_tool_calls=whole.invalid_tool_calls,
        usage_metadata=whole.usage_metadata,
        response_metadata=whole.response_metadata,
    )
    return ChatResult(generations=[ChatGeneration(message=message)])
