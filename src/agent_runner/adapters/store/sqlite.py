"""Resources and event logs in one SQLite file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import apsw

from agent_runner.adapters.store.checks import check_head, checked_order, within
from agent_runner.adapters.store.database import SqliteDatabase
from agent_runner.errors import AlreadyExistsError, ConflictError, NotFoundError
from agent_runner.ports.stores import LogHead, ResourceKey, StoredResource

__all__ = ["SqliteDatabase", "SqliteEventLog", "SqliteResourceStore"]

_COLUMNS = "r.kind, r.id, r.org, r.slug, r.body, r.version, r.fields"

_LOG_BITS = 32
"""An event's id is its log's id times 2^32, plus its seq."""

_LOG = "event log"
"""What errors call it."""

_DELETED_AT_ONCE = 2_000
"""Events; a few milliseconds of the writer's time."""


class SqliteResourceStore:
    """Resources in one SQLite file."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    async def get(self, key: ResourceKey) -> StoredResource:
        found = await self._database.look_up(partial(_select_by_id, key))
        if found is None:
            raise NotFoundError(key.kind, key.id)
        return found

    async def find(self, kind: str, org: str | None, slug: str) -> StoredResource | None:
        if not slug:  # the empty slug names nothing
            return None
        return await self._database.look_up(partial(_select_by_slug, kind, org, slug))

    async def put(self, resource: StoredResource, *, expected: int) -> int:
        await self._database.write(partial(_compare_and_set, resource, expected))
        return expected + 1

    async def delete(self, key: ResourceKey) -> StoredResource:
        return await self._database.write(partial(_remove, key))

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
        edge = after if oldest_first else before
        statement, values = _listing(kind, org, dict(fields or {}), max(limit, 0), edge, oldest_first)
        return await self._database.read(partial(_select_all, statement, values))

    async def count(
        self,
        kind: str,
        *,
        org: str | None = None,
        fields: Mapping[str, str] | None = None,
        before: str | None = None,
    ) -> int:
        source, values, _id_column = _matching(kind, org, dict(fields or {}), before, "<", rows=False)
        return await self._database.read(partial(_select_count, f"SELECT count(*) {source}", values))

    async def values(self, kind: str, field: str) -> Sequence[str]:
        return await self._database.read(partial(_select_values, kind, field))


def _resource(row: Sequence[Any]) -> StoredResource:
    kind, id_, org, slug, body, version, fields = row
    return StoredResource(ResourceKey(kind, id_), org, slug, body, version, json.loads(fields))


def _select_by_id(key: ResourceKey, connection: apsw.Connection) -> StoredResource | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM resources r WHERE r.kind = ? AND r.id = ?",  # noqa: S608
        (key.kind, key.id),
    ).get
    return None if row is None else _resource(row)


def _select_by_slug(
    kind: str, org: str | None, slug: str, connection: apsw.Connection
) -> StoredResource | None:
    # `slug <> ''` is what lets SQLite use the partial indexes.
    where, values = "r.kind = ? AND r.slug = ? AND r.slug <> ''", [kind, slug]
    if org is not None:
        where, values = where + " AND r.org = ?", [*values, org]
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM resources r WHERE {where} ORDER BY r.id LIMIT 1",  # noqa: S608
        values,
    ).get
    return None if row is None else _resource(row)


def _listing(
    kind: str, org: str | None, fields: Mapping[str, str], limit: int, edge: str | None, oldest_first: bool
) -> tuple[str, Sequence[Any]]:
    """The statement and its values for a page of resources."""
    order, beyond = ("ASC", ">") if oldest_first else ("DESC", "<")
    source, values, id_column = _matching(kind, org, fields, edge, beyond)
    statement = f"SELECT {_COLUMNS} {source} ORDER BY {id_column} {order} LIMIT ?"
    return statement, [*values, limit]


def _matching(
    kind: str,
    org: str | None,
    fields: Mapping[str, str],
    edge: str | None,
    beyond: str,
    *,
    rows: bool = True,
) -> tuple[str, Sequence[Any], str]:
    """FROM and WHERE with their values, and the column that orders them.

    The first field's index drives the query when there is one; CROSS JOIN keeps it in front.

    Args:
        rows: False leaves the resources themselves out where the index of fields has the answer.
    """
    tables, where, values = "resources r", ["r.kind = ?"], [kind]
    id_column = "r.id"
    for number, (name, value) in enumerate(fields.items()):
        alias = f"f{number}"
        if number == 0:
            tables, id_column = f"resource_fields {alias}", f"{alias}.id"
            where, values = [f"{alias}.kind = ?"], [kind]
        else:
            tables += f" CROSS JOIN resource_fields {alias}"
            where += [f"{alias}.kind = f0.kind", f"{alias}.id = f0.id"]
        where += [f"{alias}.name = ?", f"{alias}.value = ?"]
        values += [name, value]
    if fields and (rows or org is not None):
        tables += " CROSS JOIN resources r"
        where += ["r.kind = f0.kind", "r.id = f0.id"]
    if org is not None:
        where, values = [*where, "r.org = ?"], [*values, org]
    if edge is not None:
        where, values = [*where, f"{id_column} {beyond} ?"], [*values, edge]
    return f"FROM {tables} WHERE {' AND '.join(where)}", values, id_column


def _select_count(statement: str, values: Sequence[Any], connection: apsw.Connection) -> int:
    return int(connection.execute(statement, values).get)


def _select_values(kind: str, field: str, connection: apsw.Connection) -> Sequence[str]:
    rows = connection.execute(
        "SELECT DISTINCT value FROM resource_fields WHERE kind = ? AND name = ? ORDER BY value", (kind, field)
    )
    return [value for (value,) in rows]


def _select_all(
    statement: str, values: Sequence[Any], connection: apsw.Connection
) -> Sequence[StoredResource]:
    return [_resource(row) for row in connection.execute(statement, values)]


def _compare_and_set(resource: StoredResource, expected: int, connection: apsw.Connection) -> None:
    key = resource.key
    fields = json.dumps(dict(resource.fields), sort_keys=True)
    try:
        if expected:
            connection.execute(
                "UPDATE resources SET org = ?, slug = ?, version = ?, fields = ?, body = ?"
                " WHERE kind = ? AND id = ? AND version = ?",
                (
                    resource.org,
                    resource.slug,
                    expected + 1,
                    fields,
                    resource.body,
                    key.kind,
                    key.id,
                    expected,
                ),
            )
        else:
            connection.execute(
                "INSERT INTO resources (kind, id, org, slug, version, fields, body)"
                " VALUES (?, ?, ?, ?, 1, ?, ?)",
                (key.kind, key.id, resource.org, resource.slug, fields, resource.body),
            )
    except apsw.ConstraintError as error:
        raise AlreadyExistsError(key.kind, resource.slug or key.id) from error
    if expected and not connection.changes():
        raise ConflictError(key.kind, key.id, expected)


def _remove(key: ResourceKey, connection: apsw.Connection) -> StoredResource:
    found = _select_by_id(key, connection)
    if found is None:
        raise NotFoundError(key.kind, key.id)
    connection.execute("DELETE FROM resources WHERE kind = ? AND id = ?", (key.kind, key.id))
    return found


class SqliteEventLog:
    """Event logs in one SQLite file, which may be the one the resources are in."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    async def head(self, execution_id: str) -> LogHead:
        return await self._database.look_up(partial(_select_head, execution_id))

    async def append(
        self, execution_id: str, events: Sequence[bytes], *, expected_seq: int, head: LogHead
    ) -> None:
        check_head(events, expected_seq, head)
        await self._database.write(partial(_append, execution_id, list(events), expected_seq, head))

    async def read(
        self, execution_id: str, *, after_seq: int = 0, limit: int = 1000, most_bytes: int = 16 << 20
    ) -> Sequence[tuple[int, bytes]]:
        return await self._database.read(partial(_select_events, execution_id, after_seq, limit, most_bytes))

    async def replace(self, execution_id: str, events: Sequence[tuple[int, bytes]]) -> None:
        last_seq = checked_order(events)
        await self._database.write(partial(_replace, execution_id, list(events), last_seq))

    async def delete(self, execution_id: str) -> None:
        # In pieces, so that a long log does not hold up everybody else's writes. What is left after
        # a crash in between is a log without its oldest events, which can be deleted again.
        while await self._database.write(partial(_forget_oldest, execution_id)):
            pass
        await self._database.write(partial(_forget, execution_id))


def _select_head(execution_id: str, connection: apsw.Connection) -> LogHead:
    row = connection.execute(
        "SELECT l.last_seq, l.attempt, l.position, l.snapshot_seq, coalesce(s.body, x''), l.token"
        " FROM logs l LEFT JOIN snapshots s ON s.log = l.id WHERE l.execution_id = ?",
        (execution_id,),
    ).get
    return LogHead() if row is None else LogHead(*row)


def _append(
    execution_id: str, events: Sequence[bytes], expected_seq: int, head: LogHead, connection: apsw.Connection
) -> None:
    log = _advance(execution_id, expected_seq, head, connection)
    _insert_events(log, enumerate(events, start=expected_seq + 1), connection)
    # Most appends carry the snapshot that is there already; reading it costs less than writing it.
    connection.execute(
        "INSERT INTO snapshots (log, body) VALUES (?, ?)"
        " ON CONFLICT (log) DO UPDATE SET body = excluded.body WHERE body <> excluded.body",
        (log, head.snapshot),
    )


def _advance(execution_id: str, expected_seq: int, head: LogHead, connection: apsw.Connection) -> int:
    """Move the head of a log, or make the log; returns the log's id."""
    values = (head.last_seq, head.attempt, head.position, head.snapshot_seq, head.token, execution_id)
    log = connection.execute(
        "UPDATE logs SET last_seq = ?, attempt = ?, position = ?, snapshot_seq = ?, token = ?"
        " WHERE execution_id = ? AND last_seq = ? RETURNING id",
        (*values, expected_seq),
    ).get
    if log is None and expected_seq == 0:
        log = connection.execute(
            "INSERT INTO logs (last_seq, attempt, position, snapshot_seq, token, execution_id)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (execution_id) DO NOTHING RETURNING id",
            values,
        ).get
    if log is None:
        raise ConflictError(_LOG, execution_id, expected_seq)
    return int(log)


def _log_id(execution_id: str, connection: apsw.Connection) -> int | None:
    log: int | None = connection.execute("SELECT id FROM logs WHERE execution_id = ?", (execution_id,)).get
    return log


def _select_events(
    execution_id: str, after_seq: int, limit: int, most_bytes: int, connection: apsw.Connection
) -> Sequence[tuple[int, bytes]]:
    rows = connection.execute(
        f"SELECT e.id - (l.id << {_LOG_BITS}), e.body FROM logs l CROSS JOIN events e"  # noqa: S608
        f" WHERE l.execution_id = ? AND e.id > (l.id << {_LOG_BITS}) + ?"
        f" AND e.id < ((l.id + 1) << {_LOG_BITS}) ORDER BY e.id LIMIT ?",
        (execution_id, max(after_seq, 0), max(limit, 0)),
    )
    return list(within(cast("Iterable[tuple[int, bytes]]", rows), limit, most_bytes))


def _insert_events(log: int, events: Iterable[tuple[int, bytes]], connection: apsw.Connection) -> None:
    first = log << _LOG_BITS
    connection.executemany(
        "INSERT INTO events (id, body) VALUES (?, ?)", [(first + seq, body) for seq, body in events]
    )


def _keep_events(log: int, events: Sequence[tuple[int, bytes]], connection: apsw.Connection) -> None:
    """Delete all others, and write those alone which have changed: most of a long log has not."""
    first = log << _LOG_BITS
    kept = {first + seq for seq, _ in events}
    found = connection.execute(
        "SELECT id FROM events WHERE id > ? AND id < ?", (first, (log + 1) << _LOG_BITS)
    )
    gone = [(row,) for (row,) in found if row not in kept]
    connection.executemany("DELETE FROM events WHERE id = ?", gone)
    connection.executemany(
        "INSERT INTO events (id, body) VALUES (?, ?)"
        " ON CONFLICT (id) DO UPDATE SET body = excluded.body WHERE body <> excluded.body",
        [(first + seq, body) for seq, body in events],
    )


def _drop_events(log: int, connection: apsw.Connection) -> None:
    connection.execute(
        "DELETE FROM events WHERE id > ? AND id < ?", (log << _LOG_BITS, (log + 1) << _LOG_BITS)
    )


def _replace(
    execution_id: str, events: Sequence[tuple[int, bytes]], last_seq: int, connection: apsw.Connection
) -> None:
    found = connection.execute("SELECT id, last_seq FROM logs WHERE execution_id = ?", (execution_id,)).get
    if found is None:
        raise NotFoundError(_LOG, execution_id)
    log, newest = found
    if newest != last_seq:
        raise ConflictError(_LOG, execution_id, last_seq)
    _keep_events(log, events, connection)


def _forget_oldest(execution_id: str, connection: apsw.Connection) -> bool:
    """Delete some events; whether there may be more."""
    log = _log_id(execution_id, connection)
    if log is None:
        return False
    connection.execute(
        "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE id > ? AND id < ? LIMIT ?)",
        (log << _LOG_BITS, (log + 1) << _LOG_BITS, _DELETED_AT_ONCE),
    )
    return connection.changes() == _DELETED_AT_ONCE


def _forget(execution_id: str, connection: apsw.Connection) -> None:
    log = _log_id(execution_id, connection)
    if log is None:
        return
    _drop_events(log, connection)
    connection.execute("DELETE FROM snapshots WHERE log = ?", (log,))
    connection.execute("DELETE FROM logs WHERE id = ?", (log,))
