"""Ways to speak to an MCP server, none of which takes in more than fits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Final, TypeAlias

import anyio
import httpx
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp import types
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from agent_runner.errors import SandboxUnavailableError
from agent_runner.ports.processes import SandboxProcess

Streams: TypeAlias = tuple[
    MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]
]
Transport: TypeAlias = AbstractAsyncContextManager[Streams]

MOST_BYTES: Final = 8 << 20
"""The longest message of a server."""
_TOO_LONG: Final = f"it sent a message of more than {MOST_BYTES >> 20} MiB"
_SILENCE: Final = timedelta(hours=1)
"""How long a stream of events may be silent; calls have limits of their own."""


class Faults:
    """What is known of why a server cannot be spoken to any more, for whoever waits for it."""

    def __init__(self) -> None:
        self.text = ""
        self._waiting: set[asyncio.Future[None]] = set()

    def note(self, text: str) -> None:
        """Keep the first thing that went wrong."""
        self.text = self.text or text

    def cut_off(self, text: str) -> None:
        """An answer was cut off, nobody knows which: whoever waits for one, waits in vain."""
        self.note(text)
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def wait_cut_off(self) -> None:
        """Return when the next answer is cut off."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)


@asynccontextmanager
async def over_pipes(process: SandboxProcess, faults: Faults) -> AsyncIterator[Streams]:
    """A process that reads and writes a message a line. Ends the process at the end."""
    to_us, received = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    sent, from_us = anyio.create_memory_object_stream[SessionMessage](0)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_read_lines, process, to_us, faults)
            tasks.start_soon(_write_lines, process, from_us, faults)
            try:
                yield received, sent
            finally:
                tasks.cancel_scope.cancel()
    finally:
        for stream in (to_us, received, sent, from_us):
            stream.close()
        with anyio.CancelScope(shield=True):
            await process.aclose()


async def _read_lines(
    process: SandboxProcess, to_us: MemoryObjectSendStream[SessionMessage | Exception], faults: Faults
) -> None:
    rest = bytearray()
    async with to_us:
        while data := await process.read():
            lines = data.split(b"\n")
            rest += lines[0]
            for line in lines[1:]:
                if rest.strip():
                    await to_us.send(_message(bytes(rest)))
                rest = bytearray(line)
            if len(rest) > MOST_BYTES:
                faults.note(_TOO_LONG)
                return
        faults.note(f"it has ended: {process.last_words[-500:] or 'without a word'}")


def _message(line: bytes) -> SessionMessage | Exception:
    try:
        return SessionMessage(types.JSONRPCMessage.model_validate_json(line))
    except ValidationError as error:
        return error  # something else it prints; the session passes over it


async def _write_lines(
    process: SandboxProcess, from_us: MemoryObjectReceiveStream[SessionMessage], faults: Faults
) -> None:
    async with from_us:
        async for sent in from_us:
            text = sent.message.model_dump_json(by_alias=True, exclude_none=True)
            try:
                await process.write(text.encode() + b"\n")
            except SandboxUnavailableError as error:
                faults.note(str(error))
                return


@asynccontextmanager
async def over_streamable_http(
    url: str, headers: Mapping[str, str], timeout: timedelta, faults: Faults
) -> AsyncIterator[Streams]:
    """Streamable HTTP, the transport of the specification since 2025-03."""
    async with (
        _client(headers, timeout, faults) as client,
        streamable_http_client(url, http_client=client) as (received, sent, _),
    ):
        yield received, sent


@asynccontextmanager
async def over_events(
    url: str, headers: Mapping[str, str], timeout: timedelta, faults: Faults
) -> AsyncIterator[Streams]:
    """HTTP with server-sent events, the transport before that."""

    client = _client(headers, timeout, faults)

    def factory(
        headers: dict[str, str] | None = None,
        timeout: httpx.Timeout | None = None,
        auth: httpx.Auth | None = None,
    ) -> httpx.AsyncClient:
        return client

    async with sse_client(url, httpx_client_factory=factory) as streams:
        yield streams


def _client(headers: Mapping[str, str], timeout: timedelta, faults: Faults) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        # Compressed answers could become any size once they are unpacked.
        headers={**headers, "Accept-Encoding": "identity"},
        timeout=httpx.Timeout(timeout.total_seconds(), read=_SILENCE.total_seconds()),
        transport=_Bounded(httpx.AsyncHTTPTransport(), faults),
    )


class _Bounded(httpx.AsyncBaseTransport):
    """Cuts off answers with more than MOST_BYTES, or, in a stream of events, lines with more."""

    def __init__(self, inner: httpx.AsyncBaseTransport, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        if response.status_code >= 400 and request.method == "POST":
            self._faults.note(f"it answered HTTP {response.status_code}")
        if problem := _unreadable(request, response):
            await response.aclose()
            self._faults.note(problem)
            raise httpx.DecodingError(problem, request=request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        by_line = response.headers.get("content-type", "").startswith("text/event-stream")
        response.stream = _BoundedStream(response.stream, self._faults, by_line=by_line)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


def _unreadable(request: httpx.Request, response: httpx.Response) -> str:
    """Why the client library could make nothing of an answer, or too much; empty when it can."""
    if response.headers.get("content-encoding", "identity") != "identity":
        return "it answers compressed, without being asked to"
    kind = response.headers.get("content-type", "").partition(";")[0]
    if request.method == "POST" and response.status_code == 200 and kind.startswith("text/html"):
        return f"it answers {kind}, which is no MCP"
    return ""


class _BoundedStream(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream, faults: Faults, *, by_line: bool) -> None:
        self._inner = inner
        self._faults = faults
        self._by_line = by_line

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for data in self._inner:
            last_end = data.rfind(b"\n") if self._by_line else -1
            size = len(data) - last_end - 1 if last_end >= 0 else size + len(data)
            if size > MOST_BYTES:
                self._faults.cut_off(_TOO_LONG)
                raise httpx.ReadError(_TOO_LONG)
            yield data

    async def aclose(self) -> None:
        await self._inner.aclose()
