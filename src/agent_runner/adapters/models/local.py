"""The model that runs here, as a client: OpenAI's protocol to the child process, with honesty guards.

A small model claims success wrongly, and repeats itself. So a call that only repeats the one before ends
the turn, and each answer after tools ends with what the tools did, taken from their results.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from agent_runner.adapters.models.local_profile import (
    MOST_ROUNDS,
    done_so_far,
    for_small_model,
    is_repeated,
    rounds,
)
from agent_runner.adapters.models.local_server import CONTEXT_TOKENS, LocalServer

_ANSWER_TOKENS = 500

NOTICE = (
    "Model: built-in {title} (demo quality: single-step tasks; it can claim success wrongly). For real work "
    "set ANTHROPIC_API_KEY or OPENAI_API_KEY, or run Ollama."
)


class LocalChat(ChatOpenAI):
    """Asks the small model in the form that suits it."""

    @classmethod
    def at(cls, server: LocalServer, name: str, options: dict[str, Any], timeout: float) -> LocalChat:
        """A client of a server, which is started where it does not run.

        Args:
            options: temperature and max_tokens where they are wished for; else 0 and 500.
        """
        return cls(
            model=name,
            base_url=server.address(),
            api_key=SecretStr(server.key),
            timeout=timeout,
            stream_chunk_timeout=timeout,
            max_retries=0,
            stream_usage=True,
            profile={"max_input_tokens": CONTEXT_TOKENS - 1024, "max_output_tokens": _ANSWER_TOKENS},
            **{"temperature": 0.0, "max_tokens": _ANSWER_TOKENS, **options},
        )

    def _get_request_payload(
        self, input_: Any, *, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        return for_small_model(super()._get_request_payload(input_, stop=stop, **kwargs))

    async def _astream(self, messages: Any, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        past = super()._get_request_payload(messages)["messages"]
        calls: list[ChatGenerationChunk] = []
        ending = False
        async for chunk in super()._astream(messages, *args, **kwargs):
            info = chunk.generation_info or {}
            if getattr(chunk.message, "tool_call_chunks", None):
                calls.append(chunk)
                if not info.get("finish_reason"):
                    continue
            if info.get("finish_reason") and not ending:
                ending = True
                for last in self._ended(calls, past):
                    yield last
                if chunk in calls:  # told, or left out, by what came before
                    continue
            yield chunk

    def _ended(self, calls: list[ChatGenerationChunk], past: list[Any]) -> list[ChatGenerationChunk]:
        """The calls that were held back; or what was done, when there are none worth making."""
        asked = _joined(calls)
        circles = is_repeated(asked, past)
        if asked and not circles and rounds(past) < MOST_ROUNDS:
            return calls
        done = done_so_far(past)
        if not done:
            return []
        head = "It began to repeat itself, so it was stopped." if circles else ""
        if asked and not circles:
            head = f"It was stopped after {MOST_ROUNDS} rounds."
        text = "\n\n".join(filter(None, [head, "What the tools did:\n" + "\n".join(done)]))
        return [ChatGenerationChunk(message=AIMessageChunk(content=f"\n\n{text}"))]


def _joined(chunks: list[ChatGenerationChunk]) -> list[tuple[str, str]]:
    """(name, arguments) of streamed calls."""
    calls: dict[Any, list[str]] = {}
    for chunk in chunks:
        for piece in getattr(chunk.message, "tool_call_chunks", ()):
            call = calls.setdefault(piece["index"], ["", ""])
            call[0] += piece["name"] or ""
            call[1] += piece["args"] or ""
    return [(name, arguments) for name, arguments in calls.values()]
