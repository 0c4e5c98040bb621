"""The control plane as a process: stores, services, API, and the worker of its workflow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.metadata import version

import structlog

from agent_runner.adapters.secrets.key_files import open_keyring
from agent_runner.adapters.temporal.connection import TemporalConnection
from agent_runner.adapters.workflows.temporal import StarterSettings, TemporalWorkflowStarter
from agent_runner.bootstrap.artifacts import artifact_store
from agent_runner.bootstrap.data import DataDirectory, held
from agent_runner.bootstrap.keys import encryption_keys
from agent_runner.bootstrap.process import settle
from agent_runner.bootstrap.skills import skill_limits
from agent_runner.bootstrap.stores import opened_stores
from agent_runner.bootstrap.web import web_port
from agent_runner.bootstrap.workers import once_connected
from agent_runner.controlplane.local import LocalCalls
from agent_runner.controlplane.server import ControlPlane
from agent_runner.runner.ends import ServiceEnds
from agent_runner.runner.worker import ControlPlaneWorker
from agent_runner.services.container import Services, build_services
from agent_runner.services.identity import store_id
from agent_runner.services.retention import RetentionPolicy
from agent_runner.settings import Settings

log = structlog.get_logger(__name__)

DISTRIBUTION = "agent-runner-platform"


@dataclass(frozen=True, slots=True)
class Serving:
    """A control plane that serves.

    Attributes:
        address: `host:port`.
        calls: the way to it within this process.
    """

    address: str
    calls: LocalCalls


async def serve_control_plane(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until told to stop. Temporal may be away: what needs it then answers UNAVAILABLE."""
    data = DataDirectory(settings.data_dir)
    data.prepare()
    with held(data):
        connection = TemporalConnection(settings.temporal_address)
        async with (
            control_plane(settings, data, connection) as serving,
            web_port(settings, serving.address) as web,
        ):
            settle()
            log.info("control plane is ready", address=serving.address, web=web)
            await stop.wait()


@asynccontextmanager
async def control_plane(
    settings: Settings, data: DataDirectory, connection: TemporalConnection
) -> AsyncIterator[Serving]:
    """A control plane that serves while the context is open."""
    async with AsyncExitStack() as stack:
        stores = await stack.enter_async_context(opened_stores(settings, data))
        starter = replace(starter_settings(settings), owner=await store_id(stores.resources))
        services = build_services(
            stores.resources,
            stores.events,
            stores.announcer,
            TemporalWorkflowStarter(connection, starter),
            artifacts=artifact_store(settings, data),
            replicas=stores.shared,
            spool=data.root,
            skill_limits=skill_limits(settings),
            secrets=open_keyring(encryption_keys(settings), data.root),
        )
        api = ControlPlane(
            services,
            address=settings.listen,
            api_key=settings.key,
            runner_key=settings.runner_key or None,
            version=version(DISTRIBUTION),
            temporal_address=connection.address,
            database=stores.kind,
            retention=retention_policy(settings),
        )
        port = await api.start()
        stack.push_async_callback(api.stop, 2.0)
        await stack.enter_async_context(
            once_connected(connection, lambda: _run_workflows(settings, connection, services))
        )
        yield Serving(f"{settings.listen.rpartition(':')[0]}:{port}", api.local)


def retention_policy(settings: Settings) -> RetentionPolicy:
    return RetentionPolicy(
        compact_after=timedelta(minutes=settings.compact_after_minutes) or None,
        sessions_for=timedelta(days=settings.retention_days) or None,
    )


def starter_settings(settings: Settings) -> StarterSettings:
    return StarterSettings(
        workflow_task_queue=settings.workflow_task_queue,
        runner_task_queue=settings.runner_task_queue,
        execution_timeout=settings.execution_timeout,
        heartbeat_timeout=settings.heartbeat_timeout,
        full_argument=settings.full_workflow_argument,
    )


async def _run_workflows(settings: Settings, connection: TemporalConnection, services: Services) -> None:
    client = await connection.client()
    worker = ControlPlaneWorker(client, ServiceEnds(services), task_queue=settings.workflow_task_queue)
    async with worker:
        await worker.wait()
