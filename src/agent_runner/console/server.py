"""The web port as a server of this process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from datetime import timedelta

import structlog
import uvicorn

from agent_runner.client import AgentRunner
from agent_runner.console.application import WebPort
from agent_runner.console.events import HEARTBEAT, SLOW
from agent_runner.errors import SettingsError

log = structlog.get_logger(__name__)

_GRACE_SECONDS = 2


class _Uvicorn(uvicorn.Server):
    """Leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Console:
    """Serves the web port.

    Args:
        listen: `host:port`; port 0 takes a free one.
        server: address of the control plane.
        elsewhere: take a free port when the one asked for is taken.
    """

    def __init__(
        self,
        listen: str,
        server: str,
        api_key: str | None,
        *,
        elsewhere: bool = False,
        heartbeat: timedelta = HEARTBEAT,
        slow_after: timedelta = SLOW,
    ) -> None:
        self._listen = listen
        self._elsewhere = elsewhere
        self._slow_after = slow_after
        self._client = AgentRunner(server, api_key)
        self._port = WebPort(self._client, api_key, heartbeat=heartbeat, slow_after=slow_after)
        self._uvicorn: _Uvicorn | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen; returns the URL.

        Raises:
            SettingsError: the address cannot be listened on.
        """
        listener = self._bind()
        config = uvicorn.Config(
            self._port.application(),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            h11_max_incomplete_event_size=16 << 10,
            limit_concurrency=2000,
        )
        self._uvicorn = _Uvicorn(config)
        self._serving = asyncio.create_task(self._uvicorn.serve([listener]), name="web port")
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        log.info("web port listens", url=url)
        return url

    async def stop(self) -> None:
        """End streams, let requests end, then close."""
        self._port.closing.set()
        if self._uvicorn is not None and self._serving is not None:
            self._uvicorn.should_exit = True
            await asyncio.wait([self._serving], timeout=_GRACE_SECONDS + 2)
            self._serving.cancel()
        await self._client.aclose()

    def _bind(self) -> socket.socket:
        host, _, port = self._listen.rpartition(":")
        try:
            return self._socket(host.strip("[]"), int(port))
        except OSError as error:
            if not self._elsewhere:
                raise SettingsError(
                    f"web_listen={self._listen} cannot be listened on: {error.strerror}. "
                    "Stop what listens there, choose another address, or set it to off."
                ) from error
            log.warning("web port is taken, using a free one", asked_for=self._listen)
            return self._socket(host.strip("[]"), 0)

    def _socket(self, host: str, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                # Accepted connections inherit it: the kernel drops those whose other end takes nothing,
                # also when what is left to send is not ours any more.
                limit = int(self._slow_after.total_seconds() * 1000)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit)
            listener.bind((host, port))
            listener.listen(512)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        return listener
