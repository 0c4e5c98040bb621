"""A database in MongoDB: reaching it, its collections and its indexes.

Wants the extra `mongodb` and a replica set, as every hosted MongoDB is. Writes wait for a majority of it,
and reads show what a majority has, so that nothing which somebody has seen goes when a member is lost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Final, Self

from pymongo import AsyncMongoClient, ReadPreference, UpdateOne, WriteConcern
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    ConfigurationError,
    DocumentTooLarge,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
)
from pymongo.read_concern import ReadConcern

from agent_runner.errors import ConflictError, InvalidRequestError, SettingsError, UnavailableError

Document = dict[str, Any]
Collection = AsyncCollection[Document]
Index = list[tuple[str, int]]

SCHEMA_VERSION: Final = 2
DEFAULT_DATABASE: Final = "agent_runner"

BY_ID: Final[Index] = [("kind", 1), ("id", 1)]
BY_ORG: Final[Index] = [("kind", 1), ("org", 1), ("id", 1)]
BY_FIELD: Final[Index] = [("kind", 1), ("fields", 1), ("id", 1)]
BY_ORG_AND_FIELD: Final[Index] = [("kind", 1), ("org", 1), ("fields", 1), ("id", 1)]

_UPDATED_AT_ONCE: Final = 1000
"""Documents; within the time one call may take."""
_WRITE_CONFLICT: Final = 112
_REFUSED: Final = (13, 18, 8000)
"""Unauthorized, AuthenticationFailed, and how Atlas says either."""


class MongoDatabase:
    """A database in a MongoDB cluster, with its collections and indexes.

    Args:
        url: `mongodb://…`; the database it names is used, else `agent_runner`.
        timeout: seconds until a call that cannot reach the cluster gives up.

    Raises:
        SettingsError: the address is wrong.
    """

    def __init__(self, url: str, *, timeout: float = 10.0) -> None:
        limits = {"serverSelectionTimeoutMS": int(timeout * 1000), "timeoutMS": int(timeout * 1000)}
        try:
            self._client: AsyncMongoClient[Document] = AsyncMongoClient(url, **limits)  # type: ignore[arg-type]
            database = self._client.get_default_database(DEFAULT_DATABASE)
        except (PyMongoError, ValueError) as error:
            # The driver quotes the part it did not understand, and may take a password for it.
            detail = "escape :/?#[]@% in its user and password as %3A…" if "@" in url else str(error)
            raise SettingsError(f"The MongoDB address is wrong: {detail}") from None
        durable: AsyncDatabase[Document] = database.with_options(
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern(w="majority", j=True),
            read_concern=ReadConcern("majority"),
        )
        self.resources: Collection = durable["resources"]
        self.batches: Collection = durable["log_batches"]
        self.snapshots: Collection = durable["log_snapshots"]
        self._schema: Collection = durable["schema"]

    async def open(self) -> None:
        """Reach the cluster and make what indexes are missing.

        Raises:
            SettingsError: a newer release has written the database, the cluster refuses the user, cannot
                be found in DNS, or is no replica set.
            UnavailableError: the cluster cannot be reached.
        """
        try:
            version = await self.check()
            with translated(), _refusals():
                await self._make_indexes()
                if version < SCHEMA_VERSION:
                    await self._mark_open()
                    await self._schema.update_one(
                        {"_id": "version"}, {"$max": {"version": SCHEMA_VERSION}}, upsert=True
                    )
        except BaseException:
            await self.aclose()
            raise

    async def check(self) -> int:
        """Reach the cluster and write nothing; returns the schema's version, 0 where there is none yet.

        Raises as `open` does.
        """
        with translated(), _refusals():
            await self._check_cluster()
            found = await self._schema.find_one({"_id": "version"})
        version = int(found["version"]) if found else 0
        if version > SCHEMA_VERSION:
            raise SettingsError(
                f"The MongoDB database has schema version {version}; this release knows up to "
                f"{SCHEMA_VERSION}. Use the release that wrote it, or a newer one."
            )
        return version

    async def _check_cluster(self) -> None:
        told = await self._client.admin.command("hello")
        # A router of a sharded cluster says isdbgrid.
        if "setName" not in told and told.get("msg") != "isdbgrid":
            raise SettingsError(
                "The MongoDB server is no replica set, and so without transactions. Start it with "
                "--replSet NAME and call rs.initiate() once; one member is enough."
            )

    async def _make_indexes(self) -> None:
        """Make the indexes; those that are there stay."""
        named: Document = {"partialFilterExpression": {"slug": {"$gt": ""}}}
        resources, batches = self.resources, self.batches
        await resources.create_index(BY_ID, unique=True)
        await resources.create_index([("kind", 1), ("org", 1), ("slug", 1)], unique=True, **named)
        await resources.create_index([("kind", 1), ("slug", 1), ("id", 1)], **named)
        await resources.create_index(BY_ORG)
        await resources.create_index(BY_FIELD)
        await resources.create_index(BY_ORG_AND_FIELD)
        await batches.create_index([("execution", 1), ("revision", 1)], unique=True)
        await batches.create_index([("execution", 1), ("last", 1), ("revision", 1)])
        await self.snapshots.create_index([("execution", 1), ("revision", 1)])

    async def _mark_open(self) -> None:
        """Schema 2: executions that have not ended carry their session in a field of its own.

        One that another process writes meanwhile is left to that process, or to whoever looks at it next.
        """
        phases = [f"phase\0{phase}" for phase in ("EXECUTION_PENDING", "EXECUTION_IN_PROGRESS")]
        query = {"kind": "agent_execution", "fields": {"$in": phases}}
        found = await self.resources.find(query, {"version": 1, "fields": 1}).hint(BY_FIELD).to_list()
        updates = [_opened(document) for document in found]
        for start in range(0, len(updates), _UPDATED_AT_ONCE):
            await self.resources.bulk_write(updates[start : start + _UPDATED_AT_ONCE], ordered=False)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncClientSession]:
        async with self._client.start_session() as session, await session.start_transaction():
            yield session

    async def aclose(self) -> None:
        await self._client.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def _opened(document: Document) -> UpdateOne:
    fields = dict(pair.split("\0", 1) for pair in document["fields"])
    return UpdateOne(
        {"_id": document["_id"], "version": document["version"]},
        {"$addToSet": {"fields": f"open\0{fields.get('session_id', '')}"}},
    )


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise what waiting does not mend as a setting that is wrong."""
    try:
        yield
    except ConfigurationError as error:  # such as a mongodb+srv name that is not in DNS
        raise SettingsError(f"The MongoDB address is wrong: {error}") from error
    except OperationFailure as error:
        if error.code not in _REFUSED:
            raise
        raise SettingsError(
            "MongoDB refuses the user: check its name, its password, that it has the role readWrite on the "
            "database, and ?authSource=NAME where users are kept in another database."
        ) from error


@contextmanager
def translated() -> Iterator[None]:
    """Raise the driver's errors as ours."""
    try:
        yield
    except DocumentTooLarge as error:
        raise InvalidRequestError.of("body", "larger than the 16 MiB that MongoDB keeps") from error
    except PyMongoError as error:
        # Without the driver's account of what it knows of each server.
        told = str(error).partition(", Timeout:")[0].partition(", full error:")[0]
        raise UnavailableError(f"MongoDB cannot be used right now: {told}. Try again.") from error


@contextmanager
def overtaken(conflict: ConflictError) -> Iterator[None]:
    """Raise what a transaction says that was overtaken by another one as that conflict."""
    try:
        yield
    except OperationFailure as error:
        if error.code != _WRITE_CONFLICT:
            raise
        raise conflict from error


@contextmanager
def translated_but_duplicates() -> Iterator[None]:
    """`translated`, but a duplicate key passes through."""
    try:
        with translated():
            yield
    except UnavailableError as error:
        if isinstance(error.__cause__, DuplicateKeyError):
            raise error.__cause__ from None
        raise
