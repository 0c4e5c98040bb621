"""The embedded stack: Temporal as a child process, control plane and runner in this one."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from importlib.metadata import version

import structlog

from agent_runner.adapters.temporal.connection import TemporalConnection
from agent_runner.adapters.temporal.managed import ManagedTemporal
from agent_runner.bootstrap.controlplane import DISTRIBUTION, control_plane
from agent_runner.bootstrap.data import DataDirectory, StackState, held
from agent_runner.bootstrap.process import settle
from agent_runner.bootstrap.web import web_port
from agent_runner.client.local import LocalChannel
from agent_runner.domain.masking import LiveSecrets
from agent_runner.settings import Settings

log = structlog.get_logger(__name__)


async def serve_stack(
    settings: Settings,
    stop: asyncio.Event,
    on_ready: Callable[[], None],
    secrets: LiveSecrets | None = None,
) -> None:
    """Serve until told to stop.

    Raises:
        FailedPreconditionError: a stack runs in this data directory already.
        SettingsError: the directory cannot be written to, or the address is taken.
        UnavailableError: Temporal did not start.
    """
    data = DataDirectory(settings.data_dir)
    data.prepare()
    with held(data):
        async with AsyncExitStack() as stack:
            # The engine takes more than a second of imports, about as long as Temporal takes to start.
            importing = asyncio.to_thread(importlib.import_module, "agent_runner.bootstrap.runner")
            connection, module = await asyncio.gather(_temporal(settings, data, stack), importing)
            await connection.wait()
            serving = await stack.enter_async_context(control_plane(settings, data, connection))
            address = serving.address
            channel = LocalChannel(serving.calls, address, api_key=settings.key_of_runners)
            agents = module.runner(settings, data, connection, channel, secrets, reap=True)
            await stack.enter_async_context(agents)
            web = await stack.enter_async_context(web_port(settings, address))
            _state(address, web, connection).write(data.state)
            settle()
            log.info("stack is ready", address=address, web=web, temporal=connection.address)
            on_ready()
            await stop.wait()


async def _temporal(settings: Settings, data: DataDirectory, stack: AsyncExitStack) -> TemporalConnection:
    """The connection to the service of the settings, or to one of our own which ends with the stack."""
    if settings.temporal_address is not None:
        return TemporalConnection(settings.temporal_address)
    managed = ManagedTemporal(data.temporal, log_path=data.logs / "temporal.log")
    await stack.enter_async_context(managed)
    return TemporalConnection.managed(managed.address)


def _state(address: str, web: str, connection: TemporalConnection) -> StackState:
    return StackState(
        pid=os.getpid(),
        address=address,
        web=web,
        temporal=connection.address,
        started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        version=version(DISTRIBUTION),
    )
