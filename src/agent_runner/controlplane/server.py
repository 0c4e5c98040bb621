"""The gRPC server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from typing import Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agent_runner.controlplane._auth import KeyInterceptor, Keys
from agent_runner.controlplane._routes import Routes
from agent_runner.controlplane.local import LocalCalls
from agent_runner.controlplane.server_info import ServerController
from agent_runner.errors import AgentRunnerError, SettingsError
from agent_runner.services.container import Services
from agent_runner.services.retention import RetentionPolicy

log = structlog.get_logger(__name__)

MOST_REQUEST_BYTES: Final = 16 << 20
_FIRST_SWEEP: Final = timedelta(minutes=1)

OPTIONS: Final = (
    ("grpc.max_receive_message_length", MOST_REQUEST_BYTES),
    ("grpc.max_send_message_length", -1),
    # Two servers on one port would otherwise share its traffic silently.
    ("grpc.so_reuseport", 0),
    # Idle watchers survive NAT and load balancers. Connections are not ended by age: that would cut
    # off subscribers of the Stigmer API, who cannot go on where they stopped.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
)


class ControlPlane:
    """Serves the API, and looks after executions nobody looks after.

    Args:
        address: `host:port`; port 0 takes a free one.
        api_key: callers must show it; None lets everybody in.
        runner_key: what runners alone do is open to those who show this one; None: to everybody who may call.
        version: of the distribution.
        temporal_address, database: shown by `GetServerInfo`.
        reconcile_every: how often unfinished executions are compared with Temporal.
        slow_after: how long a watcher may take no message before it is cut off.
        retention: what is kept for how long; None keeps everything as it is.
        sweep_every: how often what is old is looked for; for the first time after a minute at most.
    """

    def __init__(
        self,
        services: Services,
        *,
        address: str,
        api_key: str | None,
        runner_key: str | None = None,
        version: str,
        temporal_address: str = "",
        database: str = "",
        reconcile_every: timedelta = timedelta(seconds=30),
        slow_after: timedelta = timedelta(seconds=30),
        retention: RetentionPolicy | None = None,
        sweep_every: timedelta = timedelta(minutes=10),
    ) -> None:
        self._retention = retention
        self._sweep_every = sweep_every
        self._services = services
        self._address = address
        self._keys = Keys(api_key, runner_key)
        self._reconcile_every = reconcile_every
        self._info = ServerController(services, version, temporal_address, database)
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._routes = Routes(services, self._info, slow_after)
        self.local = LocalCalls(self._routes.handlers)
        """The same API for callers in this process."""
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        """Listen; returns the port.

        Raises:
            SettingsError: the address cannot be listened on.
        """
        interceptors = [KeyInterceptor(self._keys)] if self._keys else []
        server = grpc.aio.server(interceptors=interceptors, options=OPTIONS)
        self._register(server)
        try:
            port = server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise SettingsError(
                f"Cannot listen on {self._address}: the port is taken, or the host is not this machine's. "
                "Stop what listens there, or choose another address."
            ) from error
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        await server.start()
        self._server = server
        self._keepers = [
            asyncio.create_task(self._reconcile(), name="reconciler"),
            asyncio.create_task(self._sweep(), name="retention"),
        ]
        log.info("control plane listens", address=self._address, port=port)
        return port

    async def stop(self, grace: float | timedelta = 5.0) -> None:
        """Take no more calls, let running ones end within the grace (seconds), then cut them off."""
        seconds = grace.total_seconds() if isinstance(grace, timedelta) else grace
        for keeper in self._keepers:
            keeper.cancel()
        if self._keepers:
            await asyncio.wait(self._keepers)
        if self._server is not None:
            await self._health.enter_graceful_shutdown()
            self._services.watches.close()
            await self._server.stop(seconds)
            self._server = None
        await self._services.aclose()

    def _register(self, server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers(tuple(self._routes.handlers))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (*self._routes.names, health.SERVICE_NAME, reflection.SERVICE_NAME), server
        )

    async def _reconcile(self) -> None:
        while True:
            await _again("reconciling", self._services.reconciler.reconcile())
            await asyncio.sleep(self._reconcile_every.total_seconds())

    async def _sweep(self) -> None:
        await _again("sweeping variables", self._services.variables.sweep())
        # Soon after the start as well: a server that is started again and again would never get to it.
        pause = min(self._sweep_every, _FIRST_SWEEP)
        while True:
            await asyncio.sleep(pause.total_seconds())
            await _again("sweeping variables", self._services.variables.sweep())
            if self._retention is not None:
                await _again("sweeping", self._services.retention.sweep(self._retention))
            pause = self._sweep_every


async def _again(name: str, work: Awaitable[object]) -> None:
    """One round of a loop nobody watches: what fails is logged, the next round may do better."""
    try:
        await work
    except AgentRunnerError as error:
        log.warning("a round failed", work=name, error=str(error))
    # The edge of the loop.
    except Exception:
        log.exception("a round failed", work=name)
