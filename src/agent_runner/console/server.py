"""The web port as a server of this process."""

from __future__ import annotations

import asyncio
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from agent_runner.client import AgentRunner
from agent_runner.console.limits import GRACE, HEARTBEAT, SLOW
from agent_runner.errors import SettingsError

if TYPE_CHECKING:
    from agent_runner.console.serving import WebServer

log = structlog.get_logger(__name__)


class Console:
    """Serves the web port.

    It listens from the start; what answers is loaded with the first caller, since most control planes
    have none: 6 MiB, and ten wake-ups a second.

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
        self._api_key = api_key
        self._heartbeat = heartbeat
        self._slow_after = slow_after
        self._client = AgentRunner(server, api_key)
        self._listener: socket.socket | None = None
        self._server: WebServer | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen; returns the URL.

        Raises:
            SettingsError: the address cannot be listened on.
        """
        listener = self._listener = self._bind()
        asyncio.get_running_loop().add_reader(listener, self._serve_from_now_on)
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        log.info("web port listens", url=url)
        return url

    async def stop(self) -> None:
        """End streams, let requests end, then close. May be called twice."""
        listener, self._listener = self._listener, None
        if listener is not None and self._serving is None:
            asyncio.get_running_loop().remove_reader(listener)
        if self._serving is not None:
            if self._server is not None:
                self._server.end()
                await asyncio.wait([self._serving], timeout=2 * GRACE.total_seconds())
            self._serving.cancel()
            await asyncio.wait([self._serving])
        if listener is not None:
            listener.close()
        await self._client.aclose()

    def _serve_from_now_on(self) -> None:
        assert self._listener is not None
        asyncio.get_running_loop().remove_reader(self._listener)
        self._serving = asyncio.create_task(self._serve(self._listener), name="web port")

    async def _serve(self, listener: socket.socket) -> None:
        try:
            self._server = await asyncio.to_thread(self._load)
            await self._server.serve(listener)
        # The edge of a task nobody watches.
        except Exception:
            log.exception("web port has failed")
            listener.close()  # who calls is refused, rather than kept waiting

    def _load(self) -> WebServer:
        from agent_runner.console.serving import WebServer

        return WebServer(self._client, self._api_key, heartbeat=self._heartbeat, slow_after=self._slow_after)

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
