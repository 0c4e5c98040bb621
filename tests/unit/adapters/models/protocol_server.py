"""A local server that speaks the streaming protocols of OpenAI (chat completions and responses) and
Anthropic (messages), with answers from a script: real client libraries can be driven without a provider.

Which answer comes next follows from the messages in the request alone. Every request is kept.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from agent_runner.adapters.models.script import ScriptedChatModel, ScriptedFailureError

OPENAI_ERRORS: Mapping[str, tuple[int, dict[str, Any]]] = {
    "rate_limit": (429, {"message": "Rate limit reached for requests", "code": "rate_limit_exceeded"}),
    "no_credit": (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}),
    "no_key": (401, {"message": "Incorrect API key provided: sk-SECRET", "code": "invalid_api_key"}),
    "unknown_model": (404, {"message": "The model does not exist", "code": "model_not_found"}),
    "too_long": (400, {"message": "maximum context length is 9", "code": "context_length_exceeded"}),
    "unavailable": (503, {"message": "The server is overloaded"}),
    "overloaded": (500, {"message": "Internal error"}),
}
ANTHROPIC_ERRORS: Mapping[str, tuple[int, dict[str, Any]]] = {
    "rate_limit": (429, {"type": "rate_limit_error", "message": "would exceed your rate limit"}),
    "no_credit": (400, {"type": "invalid_request_error", "message": "Your credit balance is too low"}),
    "no_key": (401, {"type": "authentication_error", "message": "invalid x-api-key sk-SECRET"}),
    "unknown_model": (404, {"type": "not_found_error", "message": "model: claude-9"}),
    "too_long": (400, {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 8"}),
    "unavailable": (503, {"type": "api_error", "message": "unavailable"}),
    "overloaded": (529, {"type": "overloaded_error", "message": "Overloaded"}),
}


@dataclass
class ProtocolServer:
    """The server's address and what it was asked."""

    model: ScriptedChatModel
    address: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    @property
    def environ(self) -> dict[str, str]:
        """Variables that lead a worker here."""
        return {
            "OPENAI_API_KEY": "sk-SECRET",
            "OPENAI_BASE_URL": f"{self.address}/v1",
            "ANTHROPIC_API_KEY": "sk-SECRET",
            "ANTHROPIC_BASE_URL": self.address,
        }

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(next(v for k, v in _headers(head) if k == "content-length"))
            request = json.loads(await reader.readexactly(length))
            self.requests.append(request)
            self.times.append(asyncio.get_running_loop().time())
            await self._answer(writer, request, head.split()[1].partition("?")[0])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, request: Any, path: str) -> None:
        read, stream = PROTOCOLS[path]
        speak = stream(request)
        next(speak)
        began = False
        try:
            async for chunk in self.model.astream(read(request)):
                if not began:
                    writer.write(_STREAM_HEAD)
                    began = True
                for piece in speak.send(chunk):
                    data = piece.encode()
                    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        except ScriptedFailureError as failure:
            if not began and failure.status_code is not None:
                writer.write(_refusal(failure, anthropic=path.endswith("/messages")))
            # Otherwise the connection just ends, before or in the middle of the answer.
        await writer.drain()


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
)


@asynccontextmanager
async def serving(model: ScriptedChatModel) -> AsyncIterator[ProtocolServer]:
    """Serve a script on a free port of this machine."""
    server = ProtocolServer(model)
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    server.address = f"http://127.0.0.1:{port}"
    try:
        yield server
    finally:
        listening.close()
        await listening.wait_closed()


def _headers(head: str) -> Iterator[tuple[str, str]]:
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        yield name.strip().lower(), value.strip()


def _refusal(failure: ScriptedFailureError, *, anthropic: bool) -> bytes:
    status, error = (ANTHROPIC_ERRORS if anthropic else OPENAI_ERRORS)[failure.kind]
    body = json.dumps({"type": "error", "error": error}).encode()
    wait = "" if failure.retry_after is None else f"retry-after: {failure.retry_after}\r\n"
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{wait}content-length: {len(body)}\r\n"
    return head.encode() + b"connection: close\r\n\r\n" + body


def _openai_messages(request: Any) -> list[BaseMessage]:
    made: list[BaseMessage] = []
    for message in request["messages"]:
        content = _text(message.get("content"))
        if message["role"] in ("system", "developer"):
            made.append(SystemMessage(content))
        elif message["role"] == "user":
            made.append(HumanMessage(content))
        elif message["role"] == "tool":
            made.append(ToolMessage(content, tool_call_id=message["tool_call_id"]))
        else:
            made.append(AIMessage(content))
    return made


def _anthropic_messages(request: Any) -> list[BaseMessage]:
    made: list[BaseMessage] = [SystemMessage(_text(request.get("system")))]
    for message in request["messages"]:
        if message["role"] == "assistant":
            made.append(AIMessage(_text(message["content"])))
            continue
        blocks = message["content"] if isinstance(message["content"], list) else []
        results = [block for block in blocks if block["type"] == "tool_result"]
        made += [ToolMessage(_text(r.get("content")), tool_call_id=r["tool_use_id"]) for r in results]
        if not results:
            made.append(HumanMessage(_text(message["content"])))
    return made


def _responses_messages(request: Any) -> list[BaseMessage]:
    made: list[BaseMessage] = [SystemMessage(request.get("instructions") or "")]
    asking = False
    for item in request["input"]:
        kind = item.get("type", "message")
        # An answer comes back as several items: its text, and each of its calls.
        own = kind == "function_call" or item.get("role") == "assistant" or kind == "reasoning"
        if own and not asking:
            made.append(AIMessage(""))
        asking = own
        if kind == "function_call_output":
            made.append(ToolMessage(_text(item["output"]), tool_call_id=item["call_id"]))
        elif item.get("role") == "user":
            made.append(HumanMessage(_text(item["content"])))
        elif item.get("role") in ("system", "developer"):
            made.append(SystemMessage(_text(item["content"])))
    return made


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(block.get("text", "") for block in content)
    return content or ""


Speaker = Iterator[list[str]]


def _openai_stream(request: Any) -> Any:
    """A coroutine from chunks to server-sent events."""

    def event(choices: list[Any], **more: Any) -> str:
        data = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": request["model"]}
        return f"data: {json.dumps({**data, 'choices': choices, **more})}\n\n"

    chunk: AIMessageChunk = yield
    first = True
    while True:
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        first = False
        if chunk.text:
            delta["content"] = chunk.text
        if chunk.tool_call_chunks:
            delta["tool_calls"] = [_openai_call(call) for call in chunk.tool_call_chunks]
        reason = chunk.response_metadata.get("finish_reason")
        events = [event([{"index": 0, "delta": delta, "finish_reason": reason}])]
        if chunk.usage_metadata:
            read, written = chunk.usage_metadata["input_tokens"], chunk.usage_metadata["output_tokens"]
            usage = {
                "prompt_tokens": read,
                "completion_tokens": written,
                "total_tokens": read + written,
                "prompt_tokens_details": {"cached_tokens": _cached(chunk)},
            }
            events += [event([], usage=usage), "data: [DONE]\n\n"]
        chunk = yield events


def _openai_call(call: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"index": call["index"], "function": {"arguments": call["args"] or ""}}
    if call["id"]:
        made |= {"id": call["id"], "type": "function"}
        made["function"]["name"] = call["name"]
    return made


def _cached(chunk: AIMessageChunk) -> int:
    usage = chunk.usage_metadata
    return usage["input_token_details"].get("cache_read", 0) if usage else 0


def _anthropic_stream(request: Any) -> Any:
    """A coroutine from chunks to server-sent events."""

    def event(kind: str, **data: Any) -> str:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n"

    def start(block: dict[str, Any]) -> Iterator[str]:
        nonlocal place
        if place >= 0:
            yield event("content_block_stop", index=place)
        place += 1
        yield event("content_block_start", index=place, content_block=block)

    def usage_of(chunk: AIMessageChunk) -> dict[str, int]:
        usage = chunk.usage_metadata
        read = usage["input_tokens"] if usage else 0
        written = usage["output_tokens"] if usage else 1
        # Anthropic counts what it read from its cache apart from the rest.
        cached = _cached(chunk)
        return {
            "input_tokens": read - cached,
            "output_tokens": written,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
        }

    place, kind = -1, ""
    chunk: AIMessageChunk = yield
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": request["model"], "content": []}
    head |= {"stop_reason": None, "stop_sequence": None, "usage": usage_of(chunk)}
    events = [event("message_start", message=head)]
    while True:
        if chunk.text:
            if kind != "text":
                events += start({"type": "text", "text": ""})
                kind = "text"
            delta: dict[str, Any] = {"type": "text_delta", "text": chunk.text}
            events.append(event("content_block_delta", index=place, delta=delta))
        for call in chunk.tool_call_chunks:
            if call["id"]:
                kind = "tool_use"
                events += start({"type": "tool_use", "id": call["id"], "name": call["name"], "input": {}})
            delta = {"type": "input_json_delta", "partial_json": call["args"] or ""}
            events.append(event("content_block_delta", index=place, delta=delta))
        if chunk.usage_metadata:
            if place >= 0:
                events.append(event("content_block_stop", index=place))
            reason = "tool_use" if kind == "tool_use" else "end_turn"
            end = {"stop_reason": reason, "stop_sequence": None}
            events.append(event("message_delta", delta=end, usage=usage_of(chunk)))
            events.append(event("message_stop"))
        chunk = yield events
        events = []


def _responses_stream(request: Any) -> Any:
    """A coroutine from chunks to server-sent events."""
    number = 0

    def event(kind: str, **data: Any) -> str:
        nonlocal number
        number += 1
        data = {"type": kind, "sequence_number": number, **data}
        return f"event: {kind}\ndata: {json.dumps(data)}\n\n"

    def response(status: str, **more: Any) -> dict[str, Any]:
        head = {"id": "resp_1", "object": "response", "created_at": 1, "model": request["model"]}
        rest = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None}
        return {**head, **rest, "status": status, "output": output, "metadata": {}, **more}

    def begin(item: dict[str, Any]) -> Iterator[str]:
        output.append(item)
        yield event("response.output_item.added", output_index=len(output) - 1, item=item)
        if item["type"] == "message":
            part = {"type": "output_text", "text": "", "annotations": []}
            place = {"item_id": item["id"], "output_index": len(output) - 1, "content_index": 0}
            yield event("response.content_part.added", part=part, **place)

    def end(item: dict[str, Any]) -> Iterator[str]:
        if item["type"] == "message":
            part = {"type": "output_text", "text": text, "annotations": []}
            item["content"] = [part]
            place = {"item_id": item["id"], "output_index": len(output) - 1, "content_index": 0}
            yield event("response.output_text.done", text=text, logprobs=[], **place)
            yield event("response.content_part.done", part=part, **place)
        else:
            place = {"item_id": item["id"], "output_index": len(output) - 1}
            yield event("response.function_call_arguments.done", arguments=item["arguments"], **place)
        item["status"] = "completed"
        yield event("response.output_item.done", output_index=len(output) - 1, item=item)

    output: list[dict[str, Any]] = []
    text = ""
    chunk: AIMessageChunk = yield
    events = [event("response.created", response=response("in_progress"))]
    while True:
        if chunk.text:
            if not output:
                message = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
                events += begin({**message, "status": "in_progress"})
            text += chunk.text
            place = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}
            events.append(event("response.output_text.delta", delta=chunk.text, **place))
        for call in chunk.tool_call_chunks:
            if call["id"]:
                if output:
                    events += end(output[-1])
                item = {"id": f"fc_{call['id']}", "type": "function_call", "call_id": call["id"]}
                item |= {"name": call["name"] or "", "arguments": "", "status": "in_progress"}
                events += begin(item)
            output[-1]["arguments"] += call["args"] or ""
            place = {"item_id": output[-1]["id"], "output_index": len(output) - 1}
            events.append(event("response.function_call_arguments.delta", delta=call["args"] or "", **place))
        if chunk.usage_metadata:
            if output:
                events += end(output[-1])
            read, written = chunk.usage_metadata["input_tokens"], chunk.usage_metadata["output_tokens"]
            usage = {
                "input_tokens": read,
                "input_tokens_details": {"cached_tokens": _cached(chunk)},
                "output_tokens": written,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": read + written,
            }
            events.append(event("response.completed", response=response("completed", usage=usage)))
        chunk = yield events
        events = []


PROTOCOLS: Mapping[str, tuple[Any, Any]] = {
    "/v1/chat/completions": (_openai_messages, _openai_stream),
    "/v1/responses": (_responses_messages, _responses_stream),
    "/v1/messages": (_anthropic_messages, _anthropic_stream),
}
