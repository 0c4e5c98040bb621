"""What this machine can do, for people: each check answers in words."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import Iterator

from agent_runner.bootstrap.data import DataDirectory
from agent_runner.errors import AgentRunnerError
from agent_runner.ports.sandboxes import SandboxProvider
from agent_runner.settings import Settings

Row = tuple[str, bool, str]


def checks(settings: Settings) -> Iterator[Row]:
    """Name, whether it works, and what there is or what to do. Each is made when it is asked for."""
    yield "python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.platform()}"
    yield _data_directory(settings)
    yield from _stores(settings)
    yield _temporal(settings)
    yield from _engines(settings)
    yield from _sandboxes(settings)
    yield _model(settings)


def _data_directory(settings: Settings) -> Row:
    data = DataDirectory(settings.data_dir)
    try:
        data.prepare()
    except AgentRunnerError as error:
        return "data directory", False, str(error)
    return "data directory", True, str(data.root)


def _stores(settings: Settings) -> Iterator[Row]:
    from agent_runner.bootstrap.stores import announcements_problem, database_problem

    if settings.database is None:
        yield "database", True, f"SQLite, {DataDirectory(settings.data_dir).database}"
    else:
        problem = asyncio.run(database_problem(settings))
        yield "database", not problem, problem or "MongoDB answers"
    if settings.announcements is not None:
        problem = asyncio.run(announcements_problem(settings))
        yield "announcements", not problem, problem or "Redis answers"


def _temporal(settings: Settings) -> Row:
    from agent_runner.adapters.temporal.connection import TemporalConnection
    from agent_runner.adapters.temporal.managed import find_binary

    if settings.temporal_address is None:
        try:
            return "temporal", True, f"our own, from {find_binary()}"
        except AgentRunnerError as error:
            return "temporal", False, str(error)
    connection = TemporalConnection(settings.temporal_address)
    reachable = asyncio.run(connection.reachable())
    return "temporal", reachable, f"{connection.address} {'answers' if reachable else 'does not answer'}"


def _engines(settings: Settings) -> Iterator[Row]:
    from agent_runner.bootstrap.engines import describe, missing

    for engine in ("deepagents", "graphton"):
        problem = missing(engine)
        wanted = " (in use)" if engine == settings.engine else ""
        # An engine nobody asked for is no problem of this machine's.
        yield f"engine {engine}", not problem or not wanted, (problem or describe(engine)) + wanted


def _sandboxes(settings: Settings) -> Iterator[Row]:
    from agent_runner.bootstrap.sandboxes import KINDS, sandbox_provider

    for kind in KINDS:
        provider = sandbox_provider(settings, DataDirectory(settings.data_dir), kind)
        problem = asyncio.run(_checked(provider))
        wanted = " (in use)" if kind == settings.sandbox else ""
        # A kind nobody asked for is no problem of this machine's.
        yield f"sandbox {kind}", not problem or not wanted, (problem or "works") + wanted


async def _checked(provider: SandboxProvider) -> str:
    try:
        return await provider.check()
    finally:
        await provider.aclose()


def _model(settings: Settings) -> Row:
    from agent_runner.adapters.models.resolver import DefaultModelResolver

    models = DataDirectory(settings.data_dir).models
    resolver = DefaultModelResolver(dict(os.environ), settings.model, local_folder=models)
    try:
        resolver.check_default()
    except AgentRunnerError as error:
        return "model", False, str(error)
    finally:
        resolver.aclose()
    return "model", True, resolver.describe_default()
