"""A LangGraph checkpoint saver on our own SQLite database.

LangGraph's own saver hops between threads once per statement and commits every call by itself; this
one hands each call to the database's writer thread as one job, which commits together with what else
waits. Unlike the library's, it may be called from synchronous code on any thread, since no event loop
takes part in the work.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import apsw
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
    get_checkpoint_id,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from agent_runner.adapters.checkpoints import history, holding
from agent_runner.adapters.checkpoints.packing import pack, unpack
from agent_runner.adapters.checkpoints.pruning import prune_thread
from agent_runner.adapters.store.database import Job, SqliteDatabase


class Place(NamedTuple):
    """Where a checkpoint is: its thread, its namespace (empty for the agent itself), its id."""

    thread_id: str
    namespace: str
    checkpoint_id: str | None

    @classmethod
    def of(cls, config: RunnableConfig) -> Place:
        where = config["configurable"]
        return cls(str(where["thread_id"]), where.get("checkpoint_ns", ""), get_checkpoint_id(config))

    def config(self, checkpoint_id: str) -> RunnableConfig:
        return {
            "configurable": {
                "thread_id": self.thread_id,
                "checkpoint_ns": self.namespace,
                "checkpoint_id": checkpoint_id,
            }
        }


class SqliteSaver(BaseCheckpointSaver[int]):
    """Checkpoints in a `SqliteDatabase` with the schema of this package.

    Versions of channels are the whole numbers of the base class: values are stored with their
    checkpoint, so branches cannot mix them up, and 2 bytes do for what a padded string takes 51.
    """

    def __init__(self, database: SqliteDatabase, *, serde: SerializerProtocol | None = None) -> None:
        super().__init__(serde=serde or JsonPlusSerializer())
        self._database = database

    # Reading

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return await self._database.read(partial(self._load, Place.of(config)))

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._database.read_blocking(partial(self._load, Place.of(config)))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        for place in await self._database.read(_search(config, filter, before, limit)):
            if found := await self._database.read(partial(self._load, place)):
                yield found

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        for place in self._database.read_blocking(_search(config, filter, before, limit)):
            if found := self._database.read_blocking(partial(self._load, place)):
                yield found

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return await self._database.read(partial(self._history, Place.of(config), tuple(channels)))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return self._database.read_blocking(partial(self._history, Place.of(config), tuple(channels)))

    # Writing. The values are serialized by the caller, not by the writer thread: the graph may change
    # them as soon as this coroutine first waits.

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        await self._database.write(self._storing(config, checkpoint, metadata))
        return Place.of(config).config(checkpoint["id"])

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        self._database.write_blocking(self._storing(config, checkpoint, metadata))
        return Place.of(config).config(checkpoint["id"])

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await self._database.write(self._storing_writes(config, writes, task_id, task_path))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        self._database.write_blocking(self._storing_writes(config, writes, task_id, task_path))

    async def adelete_thread(self, thread_id: str) -> None:
        await self._database.write(partial(_delete_thread, thread_id))

    def delete_thread(self, thread_id: str) -> None:
        self._database.write_blocking(partial(_delete_thread, thread_id))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        await self._database.write(partial(_copy_thread, source_thread_id, target_thread_id))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        self._database.write_blocking(partial(_copy_thread, source_thread_id, target_thread_id))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        for thread_id in thread_ids:
            await self._database.write(_pruning(thread_id, strategy))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        for thread_id in thread_ids:
            self._database.write_blocking(_pruning(thread_id, strategy))

    # Jobs that need the serializer

    def _load(self, place: Place, connection: apsw.Connection) -> CheckpointTuple | None:
        row = _select_checkpoint(place, connection)
        if row is None:
            return None
        checkpoint_id, parent_id, metadata, type_, body = row
        rows = connection.execute(
            "SELECT checkpoint_id, task_path, task_id, idx, channel, type, value FROM writes"
            " WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ?",
            (place.thread_id, place.namespace, checkpoint_id),
        )
        return CheckpointTuple(
            place.config(checkpoint_id),
            self.serde.loads_typed(unpack(type_, body)),
            json.loads(metadata),
            place.config(parent_id) if parent_id else None,
            _pending(history.in_order(rows), self.serde),
        )

    def _history(
        self, place: Place, channels: Sequence[str], connection: apsw.Connection
    ) -> dict[str, DeltaChannelHistory]:
        if not channels:
            return {}
        walked = history.walk(place, channels, connection)
        writes = history.select_writes(place, walked, connection)
        found: dict[str, DeltaChannelHistory] = {
            channel: {"writes": _pending(writes[channel], self.serde)} for channel in channels
        }
        for checkpoint_id, seeded in walked.seeds().items():
            type_, body = history.select_body(place, checkpoint_id, connection)
            values = self.serde.loads_typed(unpack(type_, body))["channel_values"]
            for channel in seeded:
                found[channel]["seed"] = values[channel]
        return found

    def _storing(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata
    ) -> Job[None]:
        place = Place.of(config)
        type_, body = self.serde.dumps_typed(checkpoint)
        values = (
            place.thread_id,
            place.namespace,
            checkpoint["id"],
            place.checkpoint_id,
            json.dumps(get_serializable_checkpoint_metadata(config, metadata), separators=(",", ":")),
            json.dumps(list(checkpoint["channel_values"]), separators=(",", ":")),
            type_,
            body,
        )
        return partial(_insert_checkpoint, values, holding.holder_of(config["configurable"]))

    def _storing_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> Job[None]:
        place = Place.of(config)
        if place.checkpoint_id is None:
            raise ValueError("writes belong to a checkpoint, and the configuration names none")
        rows = [
            (
                *place,
                task_id,
                WRITES_IDX_MAP.get(channel, idx),
                task_path,
                channel,
                *self.serde.dumps_typed(value),
            )
            for idx, (channel, value) in enumerate(writes)
        ]
        # Errors, interrupts and resumes are replaced; what a task wrote stays as it was first written.
        replaced = all(channel in WRITES_IDX_MAP for channel, _ in writes)
        return partial(
            _insert_writes, place.thread_id, rows, replaced, holding.holder_of(config["configurable"])
        )


def _pending(writes: Iterable[history.StoredWrite], serde: SerializerProtocol) -> list[PendingWrite]:
    return [
        (write.task_id, write.channel, serde.loads_typed(unpack(write.type, write.value))) for write in writes
    ]


def _select_checkpoint(place: Place, connection: apsw.Connection) -> Any:
    columns = "SELECT id, parent_id, metadata, type, body FROM checkpoints"
    if place.checkpoint_id:
        return connection.execute(
            f"{columns} WHERE thread_id = ? AND namespace = ? AND id = ? AND NOT pruned",
            place,
        ).get
    return connection.execute(
        f"{columns} WHERE thread_id = ? AND namespace = ? AND NOT pruned ORDER BY id DESC LIMIT 1",
        place[:2],
    ).get


def _insert_checkpoint(
    values: Sequence[Any], holder: holding.Holder | None, connection: apsw.Connection
) -> None:
    holding.check(values[0], holder, connection)
    connection.execute(
        "INSERT OR REPLACE INTO checkpoints"
        " (thread_id, namespace, id, parent_id, metadata, stored, type, body)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*values[:-2], *pack(*values[-2:])),
    )


def _insert_writes(
    thread_id: str,
    rows: Sequence[Any],
    replaced: bool,
    holder: holding.Holder | None,
    connection: apsw.Connection,
) -> None:
    holding.check(thread_id, holder, connection)
    connection.executemany(
        f"INSERT OR {'REPLACE' if replaced else 'IGNORE'} INTO writes"  # noqa: S608
        " (thread_id, namespace, checkpoint_id, task_id, idx, task_path, channel, type, value)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(*row[:-2], *pack(*row[-2:])) for row in rows],
    )


def _search(
    config: RunnableConfig | None,
    filters: Mapping[str, Any] | None,
    before: RunnableConfig | None,
    limit: int | None,
) -> Job[Sequence[Place]]:
    """A job that finds the places of matching checkpoints, newest first."""
    where: list[str] = ["NOT pruned"]
    values: list[str] = []
    if config is not None:
        place = Place.of(config)
        where, values = [*where, "thread_id = ?"], [place.thread_id]
        if "checkpoint_ns" in config["configurable"]:
            where, values = [*where, "namespace = ?"], [*values, place.namespace]
        if place.checkpoint_id:
            where, values = [*where, "id = ?"], [*values, place.checkpoint_id]
    if before is not None and (edge := get_checkpoint_id(before)):
        where, values = [*where, "id < ?"], [*values, edge]
    statement = (
        "SELECT thread_id, namespace, id, metadata FROM checkpoints"  # noqa: S608
        f" WHERE {' AND '.join(where)} ORDER BY id DESC"
    )
    return partial(_select_places, statement, values, dict(filters or {}), limit)


def _select_places(
    statement: str,
    values: Sequence[str],
    filters: Mapping[str, Any],
    limit: int | None,
    connection: apsw.Connection,
) -> Sequence[Place]:
    places: list[Place] = []
    for thread_id, namespace, checkpoint_id, metadata in connection.execute(statement, values):
        if limit is not None and len(places) >= limit:
            break
        if filters:
            known = json.loads(str(metadata))
            if any(known.get(name) != value for name, value in filters.items()):
                continue
        places.append(Place(str(thread_id), str(namespace), str(checkpoint_id)))
    return places


def _delete_thread(thread_id: str, connection: apsw.Connection) -> None:
    connection.execute("DELETE FROM checkpoints WHERE thread_id = ?", (thread_id,))
    connection.execute("DELETE FROM writes WHERE thread_id = ?", (thread_id,))
    holding.let_go(thread_id, connection)


def _copy_thread(source: str, target: str, connection: apsw.Connection) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO checkpoints"
        " SELECT ?, namespace, id, parent_id, pruned, metadata, stored, type, body"
        " FROM checkpoints WHERE thread_id = ?",
        (target, source),
    )
    connection.execute(
        "INSERT OR REPLACE INTO writes"
        " SELECT ?, namespace, checkpoint_id, task_id, idx, task_path, channel, type, value"
        " FROM writes WHERE thread_id = ?",
        (target, source),
    )


def _pruning(thread_id: str, strategy: str) -> Job[Any]:
    if strategy == "delete":
        return partial(_delete_thread, thread_id)
    if strategy == "keep_latest":
        return partial(prune_thread, thread_id, 1)
    raise ValueError(f"unknown strategy {strategy!r}: use 'keep_latest' or 'delete'")
