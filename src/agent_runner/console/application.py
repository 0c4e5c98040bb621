"""The routes of the web port."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from datetime import timedelta
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Send

from agent_runner.client import AgentRunner
from agent_runner.client.errors import code_of
from agent_runner.console.events import EVENT_HEADERS, EventStream
from agent_runner.console.limits import HEARTBEAT, SLOW
from agent_runner.domain.phases import is_terminal
from agent_runner.errors import (
    AgentRunnerError,
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from agent_runner.v1.server_service_pb2 import GetMetricsResponse

log = structlog.get_logger(__name__)

_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_STATUS: Final[Mapping[type[AgentRunnerError], int]] = {
    InvalidRequestError: 400,
    NotFoundError: 404,
    FailedPreconditionError: 409,
    UnavailableError: 503,
}
_TEXT: Final = {
    "Content-Type": "text/plain; charset=utf-8",
    "Cache-Control": "no-store",
    # It is whatever a tool found: no browser may take it for a page of ours.
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
}
_MOST_SEQ: Final = (1 << 63) - 1
_MOST_DIGITS: Final = 100


class WebPort:
    """What is answered on the web port.

    Args:
        client: of the server; calls go out with its key.
        api_key: who asks for more than health must show it as `Authorization: Bearer`; None lets
            everybody in who speaks to this machine by its own name.
    """

    def __init__(
        self,
        client: AgentRunner,
        api_key: str | None,
        *,
        heartbeat: timedelta = HEARTBEAT,
        slow_after: timedelta = SLOW,
    ) -> None:
        self._client = client
        self._key = api_key.encode() if api_key else None
        self._heartbeat = heartbeat
        self._slow_after = slow_after
        self.closing = asyncio.Event()
        """Set it to have streams end."""

    def application(self) -> ASGIApp:
        return Starlette(
            routes=[
                Route("/healthz", self._health),
                Route("/readyz", self._ready),
                Route("/metrics", self._open_to_callers(self._metrics)),
                Route("/v1/executions/{id}/events", self._open_to_callers(self._events)),
                Route(
                    "/v1/executions/{id}/tool-results/{call:path}", self._open_to_callers(self._tool_result)
                ),
            ],
            exception_handlers={AgentRunnerError: _told, HTTPException: _told_of_http},
        )

    def _open_to_callers(
        self, answer: Callable[[Request], Awaitable[Response | EventStream]]
    ) -> Callable[[Request], Awaitable[Response | EventStream]]:
        async def checked(request: Request) -> Response | EventStream:
            self._check(request)
            return await answer(request)

        return checked

    def _check(self, request: Request) -> None:
        if self._key is None:
            # A page of another site can make its own name mean this machine, and read what it gets.
            if request.url.hostname and _bare(request.headers.get("host", "")) not in _LOOPBACK:
                raise HTTPException(403, "Ask by 127.0.0.1 or localhost, or set a key.")
            return
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode(), self._key):
            raise HTTPException(
                401, "Show the server's key: Authorization: Bearer KEY.", {"WWW-Authenticate": "Bearer"}
            )

    async def _health(self, _request: Request) -> Response:
        return PlainTextResponse("ok\n", headers={"Cache-Control": "no-store"})

    async def _ready(self, _request: Request) -> Response:
        """Whether executions can be made and run now."""
        problem = ""
        try:
            info = await self._client.server_info()
            away = [] if info.temporal_reachable else ["Temporal does not answer."]
            if info.database_problem:
                # Without the problem, which names hosts: this is told to whoever asks.
                away.append("The database cannot be used.")
            problem = " ".join(away)
        except AgentRunnerError as error:
            problem = str(error)
        answer = {"ready": not problem} | ({"problem": problem} if problem else {})
        return JSONResponse(answer, 503 if problem else 200, {"Cache-Control": "no-store"})

    async def _metrics(self, _request: Request) -> Response:
        text, form = await asyncio.to_thread(_exposed, await self._client.metrics())
        return Response(text, headers={"Content-Type": form, "Cache-Control": "no-store"})

    async def _events(self, request: Request) -> Response | EventStream:
        after_seq = _after_seq(request)
        execution_id: str = request.path_params["id"]
        status = (await self._client.executions.get(execution_id)).status
        if is_terminal(status.phase) and after_seq >= status.run.last_seq:
            return Response(status_code=204)  # tells browsers not to ask again
        if request.method == "HEAD":  # what there would be, and nobody who watches
            return Response(headers=EVENT_HEADERS)
        return EventStream(
            self._client.watch(execution_id, after_seq=after_seq),
            self.closing,
            heartbeat=self._heartbeat,
            slow_after=self._slow_after,
        )

    async def _tool_result(self, request: Request) -> Response:
        """What a tool gave. An answer that breaks off ends without its last chunk."""
        chunks = self._client.executions.tool_result(request.path_params["id"], request.path_params["call"])
        # What cannot be had is known before the first piece, and told by a status.
        first = await anext(chunks, b"")
        return TextStream(_after(first, chunks), slow_after=self._slow_after)


class TextStream(StreamingResponse):
    """Text in pieces, which is closed with the answer.

    Args:
        slow_after: who takes nothing for so long is cut off: the answer ends without its last chunk.
    """

    def __init__(self, pieces: AsyncGenerator[bytes, None], *, slow_after: timedelta) -> None:
        super().__init__(pieces, headers=_TEXT)
        self._pieces = pieces
        self._slow_after = slow_after.total_seconds()

    async def stream_response(self, send: Send) -> None:
        async def put(message: Message) -> None:
            async with asyncio.timeout(self._slow_after):
                await send(message)

        try:
            async with aclosing(self._pieces):
                await super().stream_response(put)
        except TimeoutError:
            log.info("a slow reader was cut off")


async def _after(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        yield first
        async for chunk in rest:
            yield chunk


def _exposed(metrics: GetMetricsResponse) -> tuple[bytes, str]:
    """Metrics as text, and its media type."""
    # Imported when first scraped: 2 MiB, half of them the HTTP server of the standard library.
    from agent_runner.console.metrics import CONTENT_TYPE, as_text

    return as_text(metrics), CONTENT_TYPE


def _after_seq(request: Request) -> int:
    """Where the watcher stopped: what it has seen since it first asked counts more than what it asked."""
    text = request.headers.get("last-event-id") or request.query_params.get("after_seq") or "0"
    # So many digits at most: Python refuses to read thousands of them.
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS and int(text) <= _MOST_SEQ):
        raise InvalidRequestError.of("after_seq", f"must be a whole number from 0, not {text[:40]!r}")
    return int(text)


def _bare(host: str) -> str:
    """The host without its port."""
    return host if host.endswith("]") else host.rpartition(":")[0] or host


async def _told(_request: Request, error: Exception) -> Response:
    assert isinstance(error, AgentRunnerError)
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)
    return _problem(status, code_of(error), str(error))


async def _told_of_http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _problem(error.status_code, "HTTP", error.detail, error.headers)


def _problem(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    shown = {"Cache-Control": "no-store", **(headers or {})}
    return JSONResponse({"error": {"code": code, "message": message}}, status, shown)
