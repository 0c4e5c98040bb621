"""One execution's events as server-sent events, for browsers and `curl`.

    id: 17
    data: {"seq": "17", "messageDelta": {...}}

Data is the event in the JSON of protobuf, as `agent-runner watch -o jsonl` prints it.
Specification: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Any, Final

import structlog
from google.protobuf.json_format import MessageToDict
from starlette.types import Message, Receive, Scope, Send

from agent_runner.console.limits import HEARTBEAT, SLOW
from agent_runner.errors import AgentRunnerError
from agent_runner.v1.events_pb2 import ExecutionEvent

log = structlog.get_logger(__name__)

_MOST_WAITING: Final = 1 << 20
"""Bytes of events that are fetched ahead, and one event."""
_MOST_BYTES: Final = 256 << 10
EVENT_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}
_BEAT: Final = b": \n\n"
# A stream that just ends is opened again by browsers; this one tells them to close it.
_END: Final = b"event: end\ndata: {}\n\n"


class EventStream:
    """The answer to one watcher, as an ASGI application.

    Args:
        events: in order of seq; closed when the watcher is gone.
        closing: set when the server stops.
    """

    def __init__(
        self,
        events: AsyncIterator[ExecutionEvent],
        closing: asyncio.Event,
        *,
        heartbeat: timedelta = HEARTBEAT,
        slow_after: timedelta = SLOW,
    ) -> None:
        self._events = events
        self._closing = closing
        self._heartbeat = heartbeat.total_seconds()
        self._slow_after = slow_after.total_seconds()
        self._waiting: asyncio.Queue[ExecutionEvent | None] = asyncio.Queue()
        self._size = 0
        self._room = asyncio.Event()
        """Set when what waits was taken."""
        self._whole = False
        """Whether the events have come to their end, rather than the reading of them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reading = asyncio.create_task(self._read(), name="events for a browser")
        ends: list[asyncio.Task[Any]] = [
            asyncio.create_task(_disconnected(receive), name="watcher leaves"),
            asyncio.create_task(self._closing.wait(), name="server stops"),
        ]
        try:
            await self._send_all(send, ends)
        except TimeoutError:
            log.info("a slow watcher was cut off")
        finally:
            for task in (reading, *ends):
                task.cancel()
            await asyncio.wait([reading, *ends])

    async def _read(self) -> None:
        """Fetch events, no further ahead than the watcher may be behind."""
        try:
            async with aclosing(self._events) as events:  # type: ignore[type-var]
                async for event in events:
                    while self._size >= _MOST_WAITING:
                        self._room.clear()
                        await self._room.wait()
                    self._size += event.ByteSize()
                    self._waiting.put_nowait(event)
            self._whole = True
        except AgentRunnerError as error:
            log.info("watch for a browser ended", reason=str(error))
        finally:
            self._waiting.put_nowait(None)

    async def _send_all(self, send: Send, ends: Sequence[asyncio.Task[Any]]) -> None:
        headers = [(name.lower().encode(), value.encode()) for name, value in EVENT_HEADERS.items()]
        await self._put(send, {"type": "http.response.start", "status": 200, "headers": headers})
        await self._put(send, _body(b"retry: 1000\n\n"))
        while not any(task.done() for task in ends):
            batch = await self._next(ends)
            if batch is None:
                continue
            last = any(event is None for event in batch)
            for piece in _pieces(event for event in batch if event is not None):
                await self._put(send, _body(piece))
            if last:
                await self._put(send, _body(_END if self._whole else b"", more=False))
                return
            if not batch:
                await self._put(send, _body(_BEAT))
        if not ends[0].done():
            await self._put(send, _body(b"", more=False))

    async def _next(self, ends: Sequence[asyncio.Task[Any]]) -> list[ExecutionEvent | None] | None:
        """What waits; nothing after a heartbeat's time; None when the stream is to end."""
        if self._waiting.empty():
            getting = asyncio.create_task(self._waiting.get())
            await asyncio.wait({getting, *ends}, timeout=self._heartbeat, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                getting.cancel()
                return None if any(task.done() for task in ends) else []
            batch = [getting.result()]
        else:
            batch = []
        while not self._waiting.empty():
            batch.append(self._waiting.get_nowait())
        self._size = 0
        self._room.set()
        return batch

    async def _put(self, send: Send, message: Message) -> None:
        async with asyncio.timeout(self._slow_after):
            await send(message)


def _pieces(events: Iterable[ExecutionEvent]) -> Iterable[bytes]:
    """Events as text, several in one piece while they are small."""
    parts: list[bytes] = []
    size = 0
    for event in events:
        data = json.dumps(MessageToDict(event), ensure_ascii=False)
        part = f"id: {event.seq}\ndata: {data}\n\n".encode()
        if parts and size + len(part) > _MOST_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
        parts.append(part)
        size += len(part)
    if parts:
        yield b"".join(parts)


def _body(data: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
