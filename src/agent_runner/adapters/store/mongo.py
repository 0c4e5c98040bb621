"""Resources and event logs in MongoDB, for control planes of several replicas."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from bson import Binary, ObjectId
from pymongo import ASCENDING, DESCENDING
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError

from agent_runner.adapters.store.checks import check_head, checked_order, within
from agent_runner.adapters.store.mongo_database import (
    BY_FIELD,
    BY_ID,
    BY_ORG,
    BY_ORG_AND_FIELD,
    Document,
    Index,
    MongoDatabase,
    overtaken,
    translated,
    translated_but_duplicates,
)
from agent_runner.errors import AlreadyExistsError, ConflictError, NotFoundError, UnavailableError
from agent_runner.ports.stores import LogHead, ResourceKey, StoredResource

_LOG: Final = "event log"
_TRIES: Final = 20
_COMPACTED_BYTES: Final = 4 << 20
"""Bytes of events in one document of a compacted log; a document may have 16 MiB."""
_PART_BYTES: Final = 8 << 20
"""Bytes of a snapshot in one document."""


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
                    result = await self._resources.replace_one(query, document, hint=BY_ID)
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
            found = self._resources.find(query).hint(_index(org, fields))
            found = found.sort("id", ASCENDING if oldest_first else DESCENDING).limit(limit)
            return [_resource(document) async for document in found]

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
            return int(await self._resources.count_documents(query, hint=_index(org, fields)))

    async def values(self, kind: str, field: str) -> Sequence[str]:
        prefix = f"{field}\0"
        ours = {"$gte": prefix, "$lt": f"{field}\1"}
        steps: list[Document] = [
            {"$match": {"kind": kind, "fields": {"$elemMatch": ours}}},
            {"$unwind": "$fields"},
            {"$match": {"fields": ours}},
            {"$group": {"_id": "$fields"}},
        ]
        with translated():
            found = await self._resources.aggregate(steps, hint=dict(BY_FIELD))
            return sorted([pair["_id"].removeprefix(prefix) async for pair in found])


def _query(kind: str, org: str | None, fields: Mapping[str, str] | None) -> Document:
    query: Document = {"kind": kind}
    if org is not None:
        query["org"] = org
    if fields:
        query["fields"] = {"$all": _pairs(fields)}
    return query


def _index(org: str | None, fields: Mapping[str, str] | None) -> Index:
    """The index which has what a query finds together and in order.

    Said rather than left to the planner, who keeps a plan that suited a common value for a rare one.
    """
    if fields:
        return BY_FIELD if org is None else BY_ORG_AND_FIELD
    return BY_ID if org is None else BY_ORG


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
        snapshot = list(_snapshot_parts(batch, head.snapshot)) if renewed else []
        try:
            await self._insert(batch, snapshot)
        except DuplicateKeyError as error:
            raise ConflictError(_LOG, execution_id, expected_seq) from error

    async def _insert(self, batch: Document, snapshot: Sequence[Document]) -> None:
        """Insert a batch after the snapshot it names, and drop the snapshots before that.

        Raises:
            DuplicateKeyError: another writer has this revision.
        """
        with translated_but_duplicates():
            if not snapshot:
                await self._batches.insert_one(batch)
                return
            await self._snapshots.insert_many(snapshot)
            try:
                await self._batches.insert_one(batch)
            except DuplicateKeyError:
                await self._snapshots.delete_many({"_id": {"$in": [part["_id"] for part in snapshot]}})
                raise
            # Those of later revisions belong to writers who are about to name them.
            older = {"execution": batch["execution"], "revision": {"$lt": batch["revision"]}}
            await self._snapshots.delete_many(older)

    async def read(
        self, execution_id: str, *, after_seq: int = 0, limit: int = 1000, most_bytes: int = 16 << 20
    ) -> Sequence[tuple[int, bytes]]:
        events: list[tuple[int, bytes]] = []
        seen, size = after_seq, 0
        query = {"execution": execution_id, "last": {"$gt": after_seq}}
        with translated():
            found = self._batches.find(query).sort([("last", ASCENDING), ("revision", ASCENDING)])
            async with found:
                async for batch in found:
                    # A log that is compacted meanwhile goes on in documents that begin earlier.
                    new = [(seq, event) for seq, event in _events(batch) if seq > seen]
                    events += new
                    seen, size = max(seen, batch["last"]), size + sum(len(event) for _, event in new)
                    if len(events) >= limit or size >= most_bytes:
                        break
        return list(within(events, limit, most_bytes))

    async def replace(self, execution_id: str, events: Sequence[tuple[int, bytes]]) -> None:
        last_seq = checked_order(events)
        with translated(), overtaken(ConflictError(_LOG, execution_id, last_seq)):
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
            first = await self._snapshots.find_one({"_id": snapshot_id})
            if first is None or "parts" not in first:  # it is the only one
                return None if first is None else bytes(first["body"])
            query = {"execution": first["execution"], "revision": first["revision"], "of": snapshot_id}
            rest = await self._snapshots.find(query).sort("part", ASCENDING).to_list()
        if len(rest) + 1 < first["parts"]:
            return None
        return b"".join(part["body"] for part in (first, *rest))


def _snapshot_parts(batch: Document, body: bytes) -> Iterable[Document]:
    """The documents of a snapshot; the first one has its id, and says how many there are if it is not all."""
    pieces = [body[start : start + _PART_BYTES] for start in range(0, len(body), _PART_BYTES)] or [b""]
    for number, piece in enumerate(pieces):
        part = {"execution": batch["execution"], "revision": batch["revision"], "body": Binary(piece)}
        if number:
            yield {**part, "_id": ObjectId(), "of": batch["snapshot_id"], "part": number}
        else:
            yield {**part, "_id": batch["snapshot_id"], **({"parts": len(pieces)} if len(pieces) > 1 else {})}


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
