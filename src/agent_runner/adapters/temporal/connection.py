"""The one connection to Temporal that a process has."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any

import structlog
from temporalio.api.workflowservice.v1 import GetSystemInfoRequest
from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError

from agent_runner.adapters.temporal.payloads import DATA_CONVERTER
from agent_runner.errors import WorkflowServiceUnavailableError

log = structlog.get_logger(__name__)

DEFAULT_ADDRESS = "localhost:7233"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class TemporalConnection:
    """Connects when it is first needed; afterwards the client reconnects by itself.

    Standard settings are read from the environment and `temporal.toml` (`TEMPORAL_ADDRESS`,
    `TEMPORAL_NAMESPACE`, `TEMPORAL_API_KEY`, `TEMPORAL_TLS…`, profiles).

    Args:
        address: `host:port` that goes before those settings.
        namespace: goes before those settings.
        environ: what to read instead of this process's environment; empty for none of those settings.
    """

    def __init__(
        self,
        address: str | None = None,
        namespace: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        known = os.environ if environ is None else environ
        config = ClientConfig.load_client_connect_config(override_env_vars=dict(known)) if known else {}
        fallback = known.get("TEMPORAL_SERVICE_ADDRESS")
        self._options: dict[str, Any] = dict(config)
        self._options["target_host"] = address or config.get("target_host") or fallback or DEFAULT_ADDRESS
        if namespace is not None:
            self._options["namespace"] = namespace
        self._client: Client | None = None
        self._connecting = asyncio.Lock()

    @classmethod
    def managed(cls, address: str, namespace: str = "default") -> TemporalConnection:
        """To a server of our own: in clear, whatever the environment says of others."""
        return cls(address, namespace, environ={})

    @property
    def address(self) -> str:
        """`host:port`, for messages to people."""
        return str(self._options["target_host"])

    async def client(self, timeout: timedelta = timedelta(seconds=4)) -> Client:
        """The client, connected.

        Raises:
            WorkflowServiceUnavailableError: it cannot be reached within the time.
        """
        if self._client is not None:
            return self._client
        try:
            async with asyncio.timeout(timeout.total_seconds()), self._connecting:
                if self._client is None:
                    self._client = await self._connect()
        except (TimeoutError, RuntimeError, RPCError) as error:
            raise WorkflowServiceUnavailableError(self.address) from error
        return self._client

    async def wait(self) -> Client:
        """The client, however long it takes until Temporal can be reached; the wait is told once."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self.client()
            except WorkflowServiceUnavailableError as error:
                tell = log.warning if pause == _FIRST_PAUSE else log.debug
                tell("waiting for Temporal", address=self.address, reason=str(error.__cause__))
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def reachable(self, timeout: timedelta = timedelta(seconds=2)) -> bool:
        """Whether it answers now; never raises."""
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                client = await self.client(timeout)
                await client.workflow_service.get_system_info(GetSystemInfoRequest(), timeout=timeout)
        except (WorkflowServiceUnavailableError, TimeoutError, RPCError):
            return False
        return True

    async def _connect(self) -> Client:
        return await Client.connect(
            **self._options,
            data_converter=DATA_CONVERTER,
            runtime=_runtime(),
        )


@lru_cache
def _runtime() -> Runtime:
    """The SDK's threads, made once for the process.

    Workers say every few seconds that they live, since Temporal sends commands, such as cancels, only to
    those that do. Each second cost both sides a third of a percent of CPU and cancels nothing faster.
    """
    filter_ = TelemetryFilter(core_level="ERROR", other_level="ERROR")
    return Runtime(
        telemetry=TelemetryConfig(logging=LoggingConfig(filter=filter_)),
        worker_heartbeat_interval=timedelta(seconds=5),
    )
