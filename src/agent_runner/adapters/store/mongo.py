"""Resources and event logs in MongoDB, for control planes of several replicas.

Wants the extra `mongo` and a replica set, as every hosted MongoDB is; writes wait for a majority of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Final, Self

from bson import Binary, ObjectId
from bson.codec_options import CodecOptions
from pymongo import ASCENDING, DESCENDING, AsyncMongoClient, WriteConcern
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DocumentTooLarge, DuplicateKeyError, InvalidURI, PyMongoError

from agent_runner.adapters.store.checks import check_head, checked_order
from agent_runner.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    SettingsError,
    UnavailableError,
)
from agent_runner.ports.stores import LogHead, ResourceKey, StoredResource

Document = dict[str, Any]
Collection = AsyncCollection[Document]

SCHEMA_VERSION: Final = 1
DEFAULT_DATABASE: Final = "agent_runner"
_LOG: Final = "event log"
_TRIES: Final = 20
_COMPACTED_BYTES: Final = 4 << 20
"""Bytes of events in one document of a compacted log; a document may have 16 MiB."""


class MongoDatabase:
    """A database in a MongoDB cluster, with its collections and indexes.

    Args:
        url: `mongodb://…`; the database it names is used, else `agent_runner`.
        timeout: seconds until a call that cannot reach the cluster gives up.
    """

    def __init__(self, url: str, *, timeout: float = 10.0) -> None:
        try:
            self._client: AsyncMongoClient[Document] = AsyncMongoClient(
                url, serverSelectionTimeoutMS=int(timeout * 1000), timeoutMS=int(timeout * 1000)
            )
        except (InvalidURI, ValueError) as error:
            raise SettingsError(f"The MongoDB address is wrong: {error}") from error
        database = self._client.get_default_database(DEFAULT_DATABASE)
        durable: AsyncDatabase[Document] = database.with_options(
            codec_options=CodecOptions(), write_concern=WriteConcern(w="majority", j=True)
        )
        self.resources: Collection = durable["resources"]
        self.batches: Collection = durable["log_batches"]
        self.snapshots: Collection = durable["log_snapshots"]
        self._schema: Collection = durable["schema"]

    async def open(self) -> None:
        """Reach the cluster and make what indexes are missing.

        Raises:
            SettingsError: a newer release has written the database.
            UnavailableError: the cluster cannot be reached.
        """
        try:
            with translated():
                await self._bring_up_to_date()
        except BaseException:
            await self.aclose()
            raise

    async def _bring_up_to_date(self) -> None:
        found = await self._schema.find_one({"_id": "version"})
        version = found["version"] if found else 0
        if version > SCHEMA_VERSION:
            raise SettingsError(
                f"The MongoDB database has schema version {version}; this release knows up to "
                f"{SCHEMA_VERSION}. Use the release that wrote it, or a newer one."
            )
        await self._make_indexes()
        await self._schema.update_one({"_id": "version"}, {"$max": {"version": SCHEMA_VERSION}}, upsert=True)

    async def _make_indexes(self) -> None:
        """Make the indexes of schema 1; those that are there stay."""
        named: Document = {"partialFilterExpression": {"slug": {"$gt": ""}}}
        resources, batches = self.resources, self.batches
        await resources.create_index([("kind", 1), ("id", 1)], unique=True)
        await resources.create_index([("kind", 1), ("org", 1), ("slug", 1)], unique=True, **named)
        await resources.create_index([("kind", 1), ("slug", 1), ("id", 1)], **named)
        await resources.create_index([("kind", 1), ("org", 1), ("id", 1)])
        await resources.create_index([("kind", 1), ("fields", 1), ("id", 1)])
        await batches.create_index([("execution", 1), ("revision", 1)], unique=True)
        await batches.create_index([("execution", 1), ("last", 1), ("revision", 1)])
        await self.snapshots.create_index([("execution", 1), ("revision", 1)])

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


@contextmanager
def translated() -> Any:
    """Raise the driver's errors as ours."""
    try:
        yield
    except DocumentTooLarge as error:
        raise InvalidRequestError.of("body", "larger than the 16 MiB that MongoDB keeps") from error
    except PyMongoError as error:
        raise UnavailableError(f"MongoDB cannot be used right now: {error}. Try again.") from error


class MongoResourceStore:
    """Resources as documents."""

    def __init__(self, database: MongoDatabase) -> None:
        self._resources = database.resources

    async def get(self, key: ResourceKey) -> StoredResource:
        with translated():
            found = await self._resources.find_one({"kind": key.kind, "id": key.id})
        if found is None:
            raise NotFoundError(key.kind, key.id)
        return _resource(found)

    async def find(self, kind: str, org: str | None, slug: str) -> StoredResource | None:
        if not slug:  # the empty slug names nothing
            return None
        # Both conditions on the slug: the second lets MongoDB use the partial indexes.
        query: Document = {"kind": kind, "slug": {"$eq": slug, "$gt": ""}}
        if org is not None:
            query["org"] = org
        with translated():
            found = await self._resources.find_one(query, sort=[("id", ASCENDING)])
        return None if found is None else _resource(found)

    async def put(self, resource: StoredResource, *, expected: int) -> int:
        key, document = resource.key, _document(resource, expected + 1)
        query = {"kind": key.kind, "id": key.id, "version": expected}
        try:
            with translated_but_duplicates():
                if expected:
                    result = await self._resources.replace_one(query, document)
                    if not result.matched_count:
                        raise ConflictError(key.kind, key.id, expected)
                else:
                    await self._resources.insert_one(document)
        except DuplicateKeyError as error:
            raise AlreadyExistsError(key.kind, resource.slug or key.id) from error
        return expected + 1

    async def delete(self, key: ResourceKey) -> StoredResource:
        with translated():
            found = await self._resources.find_one_and_delete({"kind": key.kind, "id": key.id})
        if found is None:
            raise NotFoundError(key.kind, key.id)
        return _resource(found)

    async def list(
        self,
        kind: str,
        *,
        org: str | None = None,
        fields: Mapping[str, str] | None = None,
        limit: int = 50,
        before: str | None = None,
        oldest_first: bool = False,
        after: str | None = None,
    ) -> Sequence[StoredResource]:
        if limit <= 0:  # MongoDB takes 0 for all
            return []
        query = _query(kind, org, fields)
        edge = after if oldest_first else before
        if edge is not None:
            query["id"] = {"$gt" if oldest_first else "$lt": edge}
        with translated():
            found = self._resources.find(query).sort("id", ASCENDING if oldest_first else DESCENDING)
            return [_resource(document) async for document in found.limit(limit)]

    async def count(
        self,
        kind: str,
        *,
        org: str | None = None,
        fields: Mapping[str, str] | None = None,
        before: str | None = None,
    ) -> int:
        query = _query(kind, org, fields)
        if before is not None:
            query["id"] = {"$lt": before}
        with translated():
            return int(await self._resources.count_documents(query))


@contextmanager
def translated_but_duplicates() -> Any:
    """`translated`, but a duplicate key passes through."""
    try:
        with translated():
            yield
    except UnavailableError as error:
        if isinstance(error.__cause__, DuplicateKeyError):
            raise error.__cause__ from None
        raise


def _query(kind: str, org: str | None, fields: Mapping[str, str] | None) -> Document:
    query: Document = {"kind": kind}
    if org is not None:
        query["org"] = org
    if fields:
        query["fields"] = {"$all": _pairs(fields)}
    return query


def _pairs(fields: Mapping[str, str]) -> list[str]:
    """Fields as `name NUL value`, so that one index serves them all."""
    return [f"{name}\0{value}" for name, value in fields.items()]


def _document(resource: StoredResource, version: int) -> Document:
    return {
        "kind": resource.key.kind,
        "id": resource.key.id,
        "org": resource.org,
        "slug": resource.slug,
        "version": version,
        "fields": _pairs(resource.fields),
        "body": Binary(resource.body),
    }


def _resource(document: Document) -> StoredResource:
    pairs = (pair.partition("\0") for pair in document["fields"])
    return StoredResource(
        ResourceKey(document["kind"], document["id"]),
        document["org"],
        document["slug"],
        bytes(document["body"]),
        document["version"],
        {name: value for name, _, value in pairs},
    )


class MongoEventLog:
    """A document per append, which also holds the head after it.

    So an append is one insert, atomic without a transaction; the unique pair of execution and revision
    lets one of two writers win. Snapshots stand apart, the newest one only.
    """

    def __init__(self, database: MongoDatabase) -> None:
        self._database = database
        self._batches = database.batches
        self._snapshots = database.snapshots

    async def head(self, execution_id: str) -> LogHead:
        for _ in range(_TRIES):
            tail = await self._tail(execution_id)
            if tail is None:
                return LogHead()
            snapshot = await self._snapshot(tail["snapshot_id"])
            if snapshot is not None:
                return _head(tail, snapshot)
            # A newer snapshot came between the two reads.
        raise UnavailableError(f"The log of {execution_id!r} changes too fast to be read. Try again.")

    async def append(
        self, execution_id: str, events: Sequence[bytes], *, expected_seq: int, head: LogHead
    ) -> None:
        check_head(events, expected_seq, head)
        tail = await self._tail(execution_id)
        if (tail["last"] if tail else 0) != expected_seq:
            raise ConflictError(_LOG, execution_id, expected_seq)
        revision = tail["revision"] + 1 if tail else 1
        digest = hashlib.sha256(head.snapshot).digest()
        renewed = tail is None or tail["snapshot_digest"] != digest
        snapshot_id = ObjectId() if tail is None or renewed else tail["snapshot_id"]
        batch = {
            "execution": execution_id,
            "revision": revision,
            "last": head.last_seq,
            "attempt": head.attempt,
            "position": head.position,
            "snapshot_seq": head.snapshot_seq,
            "token": Binary(head.token),
            "snapshot_id": snapshot_id,
            "snapshot_digest": digest,
            "first": expected_seq + 1,
            "events": [Binary(event) for event in events],
        }
        snapshot = {
            "_id": snapshot_id,
            "execution": execution_id,
            "revision": revision,
            "body": Binary(head.snapshot),
        }
        try:
            await self._insert(batch, snapshot if renewed else None)
        except DuplicateKeyError as error:
            raise ConflictError(_LOG, execution_id, expected_seq) from error

    async def _insert(self, batch: Document, snapshot: Document | None) -> None:
        """Insert a batch after the snapshot it names, and drop the snapshots before that.

        Raises:
            DuplicateKeyError: another writer has this revision.
        """
        with translated_but_duplicates():
            if snapshot is None:
                await self._batches.insert_one(batch)
                return
            await self._snapshots.insert_one(snapshot)
            try:
                await self._batches.insert_one(batch)
            except DuplicateKeyError:
                await self._snapshots.delete_one({"_id": snapshot["_id"]})
                raise
            # Those of later revisions belong to writers who are about to name them.
            older = {"execution": batch["execution"], "revision": {"$lt": batch["revision"]}}
            await self._snapshots.delete_many(older)

    async def read(
        self, execution_id: str, *, after_seq: int = 0, limit: int = 1000
    ) -> Sequence[tuple[int, bytes]]:
        events: list[tuple[int, bytes]] = []
        query = {"execution": execution_id, "last": {"$gt": after_seq}}
        with translated():
            async for batch in self._batches.find(query).sort([("last", ASCENDING), ("revision", ASCENDING)]):
                events += [(seq, event) for seq, event in _events(batch) if seq > after_seq]
                if len(events) >= limit:
                    break
        return events[: max(limit, 0)]

    async def replace(self, execution_id: str, events: Sequence[tuple[int, bytes]]) -> None:
        last_seq = checked_order(events)
        with translated():
            async with self._database.transaction() as session:
                tail = await self._tail(execution_id, session)
                if tail is None:
                    raise NotFoundError(_LOG, execution_id)
                if tail["last"] != last_seq:
                    raise ConflictError(_LOG, execution_id, last_seq)
                await self._batches.delete_many({"execution": execution_id}, session=session)
                await self._batches.insert_many(list(_compacted(tail, events)), session=session)

    async def delete(self, execution_id: str) -> None:
        with translated():
            await self._batches.delete_many({"execution": execution_id})
            await self._snapshots.delete_many({"execution": execution_id})

    async def _tail(self, execution_id: str, session: AsyncClientSession | None = None) -> Document | None:
        """The newest batch, without its events."""
        with translated():
            return await self._batches.find_one(
                {"execution": execution_id},
                {"events": 0, "seqs": 0},
                sort=[("revision", DESCENDING)],
                session=session,
            )

    async def _snapshot(self, snapshot_id: ObjectId) -> bytes | None:
        with translated():
            found = await self._snapshots.find_one({"_id": snapshot_id})
        return None if found is None else bytes(found["body"])


def _head(tail: Document, snapshot: bytes) -> LogHead:
    position = tail["position"], tail["snapshot_seq"]
    # Logs of earlier releases have no token.
    return LogHead(tail["last"], tail["attempt"], *position, snapshot, bytes(tail.get("token", b"")))


def _events(batch: Document) -> Iterable[tuple[int, bytes]]:
    seqs = batch.get("seqs") or range(batch["first"], batch["last"] + 1)
    return zip(seqs, map(bytes, batch["events"]), strict=True)


def _compacted(tail: Document, events: Sequence[tuple[int, bytes]]) -> Iterable[Document]:
    """Documents of a compacted log; the last one holds the head as it was."""
    head = {name: value for name, value in tail.items() if name not in ("_id", "first", "events", "seqs")}
    pieces: list[list[tuple[int, bytes]]] = [[]]
    size = 0
    for seq, event in events:
        if pieces[-1] and size + len(event) > _COMPACTED_BYTES:
            pieces.append([])
            size = 0
        pieces[-1].append((seq, event))
        size += len(event)
    for number, piece in enumerate(pieces, start=1):
        yield {
            **head,
            "revision": tail["revision"] + number,
            "first": piece[0][0] if piece else tail["last"] + 1,
            "last": piece[-1][0] if piece else tail["last"],
            "seqs": [seq for seq, _ in piece],
            "events": [Binary(event) for _, event in piece],
        }
