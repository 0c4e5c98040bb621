"""One channel to the server: its address, its settings, and the key every call carries."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc
import grpc.aio
from google.protobuf.message import Message

from agent_runner.client.errors import from_rpc
from agent_runner.errors import SettingsError

DEFAULT_ADDRESS = "127.0.0.1:7234"
DEFAULT_PORT = 7234
UNARY_DEADLINE = timedelta(seconds=30)
MAX_MESSAGE_BYTES = 64 << 20
_LOOKAHEAD_BYTES = 1 << 20

_READ_SERVICES = (
    "ai.stigmer.agentic.agent.v1.AgentQueryController",
    "ai.stigmer.agentic.agentexecution.v1.AgentExecutionQueryController",
    "ai.stigmer.agentic.agentinstance.v1.AgentInstanceQueryController",
    "ai.stigmer.agentic.environment.v1.EnvironmentQueryController",
    "ai.stigmer.agentic.executioncontext.v1.ExecutionContextQueryController",
    "ai.stigmer.agentic.mcpserver.v1.McpServerQueryController",
    "ai.stigmer.agentic.session.v1.SessionQueryController",
    "ai.stigmer.agentic.skill.v1.SkillQueryController",
    "agent_runner.v1.ResourceService",
    "agent_runner.v1.ServerService",
)
# Writes are not in it: after a broken connection nobody knows whether a create took effect.
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": name} for name in _READ_SERVICES],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 3,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A server which was restarted is found again quickly; the default waits up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # What is on its way to somebody who reads slowly has a bound. Left to itself, gRPC takes tens of MiB a
    # stream after it has measured a fast network.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", _LOOKAHEAD_BYTES),
    ("grpc.enable_retries", 1),
    ("grpc.service_config", _SERVICE_CONFIG),
)

READY = ("agent-runner-upload", "ready")
"""In the headers of an answer: the rest of an upload may come."""

M = TypeVar("M", bound=Message)


def parse_address(address: str) -> tuple[str, bool]:
    """gRPC target and whether to use TLS.

    Accepts `host`, `host:port`, `[ipv6]:port`, `http://…`, `https://…` and `unix:PATH`.

    Raises:
        SettingsError: anything else.
    """
    text = address.strip()
    if text.startswith("unix:"):
        return text, False
    if "://" in text:
        return _parse_url(text)
    if (
        re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):\d{1,5}", text)
        and int(text.rpartition(":")[2]) < 65536
    ):
        return text, False
    if re.fullmatch(r"\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+", text):
        return f"{text}:{DEFAULT_PORT}", False
    raise SettingsError(f"The address {address!r} is not host:port, http(s)://host:port or unix:PATH.")


def _parse_url(text: str) -> tuple[str, bool]:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"The address {text!r} is not a valid URL: {error}.") from error
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or not parts.hostname:
        raise SettingsError(f"The address {text!r} is not host:port, http(s)://host:port or unix:PATH.")
    tls = parts.scheme in ("https", "grpcs")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{port or (443 if tls else DEFAULT_PORT)}", tls


def _open(address: str) -> grpc.aio.Channel:
    target, tls = parse_address(address)
    # gRPC logs through absl to stderr, also what we report ourselves.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if not tls:
        return grpc.aio.insecure_channel(target, options=_OPTIONS)
    roots = os.environ.get("SSL_CERT_FILE")
    credentials = grpc.ssl_channel_credentials(Path(roots).read_bytes() if roots else None)
    return grpc.aio.secure_channel(target, credentials, options=_OPTIONS)


class Channel:
    """Calls to one server: metadata, deadlines and errors in one place.

    A method is named as gRPC does, `/package.Service/Method`.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, api_key: str | None = None) -> None:
        self.address = address
        self._channel = _open(address)
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._methods: dict[str, Callable[..., Any]] = {}

    async def unary(
        self,
        method: str,
        request: Message,
        response: type[M],
        *,
        timeout: timedelta = UNARY_DEADLINE,
        wait_for_server: bool = False,
    ) -> M:
        """Call and wait for the answer.

        Args:
            wait_for_server: where nobody answers, call as soon as somebody does within the timeout,
                rather than fail at once.

        Raises:
            AgentRunnerError: see `agent_runner.client.errors`.
        """
        call = self._method(method, self._channel.unary_unary, response)
        try:
            answer: M = await call(
                request,
                timeout=timeout.total_seconds(),
                metadata=self._metadata,
                wait_for_ready=wait_for_server,
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self.address) from error
        return answer

    async def stream(
        self, method: str, request: Message, response: type[M], *, silence: timedelta
    ) -> AsyncIterator[M]:
        """Call and yield each answer; `silence` is the longest wait for the next one.

        Raises:
            grpc.aio.AioRpcError: as it came, for the caller to tell what to reconnect after.
            TimeoutError: silent for too long.
        """
        import asyncio

        call = self._method(method, self._channel.unary_stream, response)(request, metadata=self._metadata)
        try:
            while True:
                async with asyncio.timeout(silence.total_seconds()):
                    answer = await call.read()
                if answer is grpc.aio.EOF:
                    return
                yield answer
        finally:
            call.cancel()

    async def upload(
        self,
        method: str,
        requests: AsyncIterator[Message],
        response: type[M],
        *,
        timeout: timedelta,
        ask_first: bool = False,
    ) -> M:
        """Send each request and wait for the one answer; it may come before all were sent.

        Args:
            ask_first: send nothing after the first request until the server's headers have READY.
                Then what `requests` raises passes unchanged.

        Raises:
            AgentRunnerError: see `agent_runner.client.errors`.
        """
        make = self._method(method, self._channel.stream_unary, response)
        try:
            if ask_first:
                call = make(timeout=timeout.total_seconds(), metadata=self._metadata)
                await _send_when_asked(call, requests)
            else:
                call = make(requests, timeout=timeout.total_seconds(), metadata=self._metadata)
            answer: M = await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self.address) from error
        return answer

    def converse(self, method: str, response: type[M]) -> grpc.aio.StreamStreamCall[Any, M]:
        """Open a call in both directions; the caller reads, writes and cancels it.

        gRPC's own errors come out of it: `agent_runner.client.errors.from_rpc` turns them into ours.
        """
        make = self._method(method, self._channel.stream_stream, response)
        call: grpc.aio.StreamStreamCall[Any, M] = make(metadata=self._metadata)
        return call

    def _method(self, name: str, make: Callable[..., Any], response: type[Message]) -> Callable[..., Any]:
        if name not in self._methods:
            self._methods[name] = make(
                name,
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=response.FromString,
            )
        return self._methods[name]

    async def aclose(self) -> None:
        """Close it; calls still open are cancelled."""
        await self._channel.close()


async def _send_when_asked(call: Any, requests: AsyncIterator[Message]) -> None:
    import asyncio

    try:
        await call.write(await anext(requests))
        if READY not in ((key, value) for key, value in await call.initial_metadata()):
            return  # it was refused: the answer says why
        async for request in requests:
            await call.write(request)
        await call.done_writing()
    except asyncio.InvalidStateError:
        return  # it has answered already
    except BaseException:
        call.cancel()
        raise


def address_and_key(environ: Mapping[str, str]) -> tuple[str, str | None]:
    """Where to connect and with which key, from the environment."""
    address = environ.get("AGENT_RUNNER_ADDRESS") or environ.get("STIGMER_BACKEND_ENDPOINT")
    key = (
        environ.get("AGENT_RUNNER_API_KEY")
        or environ.get("AGENT_RUNNER_TOKEN")
        or environ.get("STIGMER_API_KEY")
    )
    return address or DEFAULT_ADDRESS, key or None
