"""What answers on the web port, loaded when somebody first asks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from datetime import timedelta

import uvicorn

from agent_runner.client import AgentRunner
from agent_runner.console.application import WebPort
from agent_runner.console.limits import GRACE


class _Uvicorn(uvicorn.Server):
    """Leaves signals to the process, and wakes up once a second rather than ten times."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ending = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # sets the date of the answers
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), 1)

    def end(self) -> None:
        self.should_exit = True
        self._ending.set()


class WebServer:
    """The application on a socket. Slow to make, for what it imports: to be made off the event loop."""

    def __init__(
        self, client: AgentRunner, api_key: str | None, *, heartbeat: timedelta, slow_after: timedelta
    ) -> None:
        self._port = WebPort(client, api_key, heartbeat=heartbeat, slow_after=slow_after)
        config = uvicorn.Config(
            self._port.application(),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(GRACE.total_seconds()),
            h11_max_incomplete_event_size=16 << 10,
            limit_concurrency=2000,
        )
        config.load()
        self._uvicorn = _Uvicorn(config)

    async def serve(self, listener: socket.socket) -> None:
        """Answer who connects, until told to end."""
        await self._uvicorn.serve([listener])

    def end(self) -> None:
        """End streams, let requests end within the grace; `serve` then returns."""
        self._port.closing.set()
        self._uvicorn.end()
