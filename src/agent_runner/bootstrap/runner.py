"""The runner as a process: engine, models, sandboxes, skills, and the worker that runs agents."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, nullcontext

import structlog

from agent_runner.adapters.agents.tool_calls import report_progress
from agent_runner.adapters.checkpoints.sqlite import SqliteCheckpoints
from agent_runner.adapters.controlplane.environments import GrpcEnvironmentResolver
from agent_runner.adapters.controlplane.file_tasks import GrpcFileTasks
from agent_runner.adapters.controlplane.keys import check_key
from agent_runner.adapters.controlplane.resources import GrpcResourceReader
from agent_runner.adapters.controlplane.tool_results import GrpcToolResults
from agent_runner.adapters.machine.memory import used_share
from agent_runner.adapters.mcp.connector import McpSessions
from agent_runner.adapters.models.resolver import DefaultModelResolver
from agent_runner.adapters.skills.cache import SkillCache
from agent_runner.adapters.skills.grpc import GrpcSkillReader
from agent_runner.adapters.status.batches import BatchSettings
from agent_runner.adapters.status.sinks import NegotiatingSinks
from agent_runner.adapters.status.spools import Spool
from agent_runner.adapters.temporal.connection import TemporalConnection
from agent_runner.bootstrap.data import DataDirectory
from agent_runner.bootstrap.engines import agent_factory
from agent_runner.bootstrap.process import settle
from agent_runner.bootstrap.sandboxes import reaping, sandbox_provider
from agent_runner.bootstrap.skills import skill_limits
from agent_runner.bootstrap.workers import once_connected
from agent_runner.client.channels import Channel
from agent_runner.domain.masking import LiveSecrets
from agent_runner.ports.status_sinks import StatusSinks
from agent_runner.runner.attempts import Parts
from agent_runner.runner.worker import RunnerWorker, WorkerSettings
from agent_runner.services.skill_loading import SkillLoader
from agent_runner.settings import Settings

log = structlog.get_logger(__name__)


async def serve_runner(settings: Settings, stop: asyncio.Event, secrets: LiveSecrets | None = None) -> None:
    """Take executions until told to stop; Temporal and the control plane may come later.

    Raises:
        UnauthenticatedError, PermissionDeniedError: the control plane is there and refuses the key.
    """
    data = DataDirectory(settings.data_dir)
    data.prepare()
    connection = TemporalConnection(settings.temporal_address)
    channel = Channel(settings.address, api_key=settings.key_of_runners)
    async with aclosing(channel):
        await check_key(channel)
        async with runner(settings, data, connection, channel, secrets):
            settle()
            log.info("runner is ready", server=settings.address, temporal=connection.address)
            await stop.wait()


@asynccontextmanager
async def runner(
    settings: Settings,
    data: DataDirectory,
    connection: TemporalConnection,
    channel: Channel,
    secrets: LiveSecrets | None = None,
    *,
    reap: bool = False,
) -> AsyncIterator[None]:
    """A runner that takes executions from the task queue while the context is open.

    Args:
        channel: to the control plane; closed with the runner.
        secrets: learns what the logs must not show.
        reap: remove sandboxes whose session the control plane does not know. For a runner that shares
            the data directory with it: another one's sessions would look as if they were gone.
    """
    async with (
        parts(settings, data, channel, secrets) as made,
        reaping(made.sandboxes, channel) if reap else nullcontext(),
        delivering(made.sinks),
    ):

        async def run_agents() -> None:
            worker = RunnerWorker(
                await connection.client(),
                made,
                _worker_settings(settings),
            )
            async with worker:
                await worker.wait()

        async with once_connected(connection, run_agents):
            yield


def _worker_settings(settings: Settings) -> WorkerSettings:
    most = settings.max_memory_percent / 100
    return WorkerSettings(
        task_queue=settings.runner_task_queue,
        concurrency=settings.concurrency,
        short_of_memory=(lambda: used_share() > most) if most < 1 else None,
    )


@asynccontextmanager
async def delivering(sinks: StatusSinks) -> AsyncIterator[None]:
    """Deliver what ended attempts left, while the context is open."""

    async def keep_delivering() -> None:
        while True:
            try:
                await sinks.deliver_left()
            # The edge of a task nobody watches.
            except Exception:
                log.exception("delivering what attempts left ended by itself and is started again")
            await asyncio.sleep(60)

    task = asyncio.create_task(keep_delivering(), name="deliver what was left")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def parts(
    settings: Settings, data: DataDirectory, channel: Channel, secrets: LiveSecrets | None = None
) -> AsyncIterator[Parts]:
    """What a worker runs agents with, open."""
    sandboxes = sandbox_provider(settings, data)
    skills = GrpcSkillReader(channel)
    models = DefaultModelResolver(dict(os.environ), settings.model, local_folder=data.models)
    spool = Spool(data.outbox, settings.outbox_bytes)
    mcp = McpSessions(on_progress=report_progress)
    try:
        async with SqliteCheckpoints(data.checkpoints) as checkpoints:
            yield Parts(
                sinks=NegotiatingSinks(channel, BatchSettings(events=settings.batch_events), spool),
                reader=GrpcResourceReader(channel),
                sandboxes=sandboxes,
                models=models,
                agents=agent_factory(settings.engine, checkpoints),
                skills=SkillLoader(skills, _skill_cache(settings, data, skills)),
                environments=GrpcEnvironmentResolver(channel),
                mcp=mcp,
                checkpoints=checkpoints,
                keep_checkpoints=settings.checkpoints_kept,
                file_tasks=GrpcFileTasks(channel),
                results=GrpcToolResults(channel),
                secrets=secrets or LiveSecrets(),
            )
    finally:
        await mcp.aclose()
        await spool.aclose()
        await asyncio.to_thread(models.aclose)
        await sandboxes.aclose()
        await channel.aclose()


def _skill_cache(settings: Settings, data: DataDirectory, reader: GrpcSkillReader) -> SkillCache:
    return SkillCache(
        data.skills, reader, most_bytes=settings.skill_cache_bytes, limits=skill_limits(settings)
    )
