"""What this machine can do, for people: each check answers in words."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator

from agent_runner.bootstrap.data import DataDirectory
from agent_runner.errors import AgentRunnerError
from agent_runner.ports.sandboxes import SandboxProvider
from agent_runner.settings import Settings

Row = tuple[str, bool | None, str]
"""Name; whether it works, None for what does not and was not asked for; what there is or what to do."""
_LEAST_FREE = 100 << 20


def checks(settings: Settings) -> Iterator[Row]:
    """Each is made when it is asked for."""
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
    free = shutil.disk_usage(data.root).free
    told = f"{data.root}, {free / (1 << 30):.1f} GiB free"
    return "data directory", free >= _LEAST_FREE, told if free >= _LEAST_FREE else f"{told}. Make room."


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
        yield _one_of(f"engine {engine}", missing(engine), describe, engine, settings.engine)


def _sandboxes(settings: Settings) -> Iterator[Row]:
    from agent_runner.bootstrap.sandboxes import KINDS, sandbox_provider

    for kind in KINDS:
        try:
            provider = sandbox_provider(settings, DataDirectory(settings.data_dir), kind)
            problem = asyncio.run(_checked(provider))
        except OSError as error:  # a disk that is full or read-only
            problem = f"It cannot be tried: {error.filename or 'the disk'}: {error.strerror}"
        yield _one_of(f"sandbox {kind}", problem, lambda _: "works", kind, settings.sandbox)


def _one_of(name: str, problem: str, says: Callable[[str], str], which: str, used: str) -> Row:
    """What one of several choices can do; who is not chosen is no problem of this machine's."""
    if which == used:
        return name, not problem, f"{problem or says(which)} (in use)"
    return name, None if problem else True, problem or says(which)


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
