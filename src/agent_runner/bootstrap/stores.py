"""Where control planes keep things, and how several of them hear of each other, by the settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, TypeVar

import structlog

from agent_runner.adapters.announcers.memory import MemoryAnnouncer
from agent_runner.adapters.store.database import SqliteDatabase
from agent_runner.adapters.store.sqlite import SqliteEventLog, SqliteResourceStore
from agent_runner.bootstrap.data import DataDirectory
from agent_runner.errors import SettingsError, UnavailableError
from agent_runner.ports.announcers import Announcer
from agent_runner.ports.stores import EventLog, ResourceStore
from agent_runner.settings import PREFIX, Settings

log = structlog.get_logger(__name__)
T = TypeVar("T")

DATABASE: Final = f"{PREFIX}DATABASE"
ANNOUNCEMENTS: Final = f"{PREFIX}ANNOUNCEMENTS"

_TO_COME: Final = 30.0
"""Seconds a server may take to come up beside us before we give up."""
_AGAIN: Final = 1.0


@dataclass(frozen=True, slots=True)
class Stores:
    """What is open.

    Attributes:
        kind: `sqlite` or `mongodb`.
        shared: whether other control planes may write to them.
    """

    resources: ResourceStore
    events: EventLog
    announcer: Announcer
    kind: str
    shared: bool


@asynccontextmanager
async def opened_stores(settings: Settings, data: DataDirectory) -> AsyncIterator[Stores]:
    """The stores of the settings, open while the context is.

    Raises:
        SettingsError: a setting is wrong or another one is missing beside it; it is named.
        UnavailableError: a server does not answer.
    """
    check_sharing(settings)
    async with AsyncExitStack() as stack:
        announcer: Announcer = MemoryAnnouncer()
        if settings.announcements is not None:
            announcer = await _reached(ANNOUNCEMENTS, lambda: _redis(settings), stack)
        if settings.database is None:
            database = await stack.enter_async_context(SqliteDatabase(data.database))
            yield Stores(
                SqliteResourceStore(database), SqliteEventLog(database), announcer, "sqlite", shared=False
            )
            return
        resources, events = await _reached(DATABASE, lambda: _mongo(settings), stack)
        yield Stores(resources, events, announcer, "mongodb", shared=True)


def check_sharing(settings: Settings) -> None:
    """Refuse to share a database where something else that belongs to it would lie on one machine.

    Raises:
        SettingsError: says what to set, or to unset.
    """
    if settings.database is None:
        if settings.announcements is not None:
            raise SettingsError(
                f"{ANNOUNCEMENTS} is for control planes that share a database, and the SQLite file is for "
                f"one alone. Set {DATABASE} to a MongoDB too, or unset {ANNOUNCEMENTS}."
            )
        return
    beside = f"{DATABASE} names a database that control planes share, so"
    if not settings.artifact_store:
        raise SettingsError(
            f"{beside} skills must lie where each of them finds them, not in one's data directory. Set "
            f"{PREFIX}ARTIFACT_STORE to s3://bucket/prefix, or to file:///folder if all of them mount it."
        )
    if not settings.encryption_keys:
        raise SettingsError(
            f"{beside} each of them needs the same keys to the secrets in it. Set "
            f'{PREFIX}ENCRYPTION_KEYS="k1:$(openssl rand -base64 32)" once, and keep a copy.'
        )


async def database_problem(settings: Settings) -> str:
    """Why the MongoDB of the settings cannot be used, found without writing to it; empty when it can."""
    try:
        check_sharing(settings)
        _needs("pymongo", "mongodb", DATABASE)
        from agent_runner.adapters.store.mongo_database import MongoDatabase

        database = MongoDatabase(settings.database or "", timeout=5)
        try:
            await database.check()
        finally:
            await database.aclose()
    except (SettingsError, UnavailableError) as error:
        return str(_named(DATABASE, error))
    return ""


async def announcements_problem(settings: Settings) -> str:
    """Why the Redis of the settings cannot be used; empty when it can."""
    try:
        if settings.database is None:  # with one, what is missing beside it is told as the database's
            check_sharing(settings)
        async with _redis(settings):
            return ""
    except (SettingsError, UnavailableError) as error:
        return str(_named(ANNOUNCEMENTS, error))


def _redis(settings: Settings) -> AbstractAsyncContextManager[Announcer]:
    _needs("redis", "redis", ANNOUNCEMENTS)
    from agent_runner.adapters.announcers.redis import RedisAnnouncer

    return RedisAnnouncer(settings.announcements or "")


@asynccontextmanager
async def _mongo(settings: Settings) -> AsyncIterator[tuple[ResourceStore, EventLog]]:
    _needs("pymongo", "mongodb", DATABASE)
    from agent_runner.adapters.store.mongo import MongoEventLog, MongoResourceStore
    from agent_runner.adapters.store.mongo_database import MongoDatabase

    async with MongoDatabase(settings.database or "") as database:
        yield MongoResourceStore(database), MongoEventLog(database)


def _needs(module: str, extra: str, variable: str) -> None:
    if find_spec(module) is None:
        raise SettingsError(
            f"{variable} needs a library that is not installed here: "
            f"pip install 'agent-runner-platform[{extra}]'. Or unset it."
        )


async def _reached(
    variable: str,
    opening: Callable[[], AbstractAsyncContextManager[T]],
    stack: AsyncExitStack,
) -> T:
    """Open what a setting names, again while nobody answers: it may be about to start as we are."""
    loop = asyncio.get_running_loop()
    until, told = loop.time() + _TO_COME, False
    while True:
        try:
            return await stack.enter_async_context(opening())
        except SettingsError as error:
            raise _named(variable, error) from error
        except UnavailableError as error:
            if loop.time() >= until:
                raise _named(variable, error) from error
            if not told:
                log.warning("waiting for a server", setting=variable, seconds=_TO_COME, error=str(error))
                told = True
        await asyncio.sleep(_AGAIN)


def _named(variable: str, error: SettingsError | UnavailableError) -> SettingsError | UnavailableError:
    """The error, told with the setting it comes from."""
    return error if variable in str(error) else type(error)(f"{variable}: {error}")
