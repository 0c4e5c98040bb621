"""Dropping old checkpoints without breaking the newer ones.

Behind the checkpoints that stay lies the history of their delta channels: the writes since the last
stored value. Ancestors that hold some of it stay as links, out of sight and without a body; all other
ancestors go, and the chain is closed over the gap.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import apsw

from agent_runner.adapters.checkpoints import history

DELTA_COUNTERS = "counters_since_delta_snapshot"
"""Where LangGraph names, in a checkpoint's metadata, the delta channels not stored since."""


@dataclass(slots=True)
class _Needed:
    """What the delta channels of the checkpoints that stay are built from.

    Attributes:
        seeds: ancestors whose body holds a value.
        writes: ancestors whose writes count, and the channels they count for.
    """

    seeds: set[str] = field(default_factory=set)
    writes: dict[str, set[str]] = field(default_factory=dict)


def prune_thread(thread_id: str, keep: int, connection: apsw.Connection) -> int:
    """Drop all but the newest `keep` checkpoints of the agent, and those of sub-agents that ran
    under dropped ones; returns how many went.

    Raises:
        ValueError: `keep` is less than 1.
    """
    if keep < 1:
        raise ValueError(f"at least 1 checkpoint must stay, not {keep}")
    before = _count(thread_id, connection)
    roots = _newest(thread_id, "", keep, connection)
    for namespace in _namespaces(thread_id, connection):
        # `name:task` is one run of a sub-graph; without the task it is a sub-graph with a memory of
        # its own, or, when empty, the agent itself.
        if ":" in namespace:
            _drop_runs_of_others(thread_id, namespace, roots, connection)
        else:
            kept = _newest(thread_id, namespace, keep, connection)
            _prune_namespace(thread_id, namespace, kept, connection)
    return before - _count(thread_id, connection)


def _count(thread_id: str, connection: apsw.Connection) -> int:
    count = connection.execute(
        "SELECT count(*) FROM checkpoints WHERE thread_id = ? AND NOT pruned", (thread_id,)
    ).get
    return cast("int", count)


def _newest(thread_id: str, namespace: str, keep: int, connection: apsw.Connection) -> set[str]:
    rows = connection.execute(
        "SELECT id FROM checkpoints WHERE thread_id = ? AND namespace = ? AND NOT pruned"
        " ORDER BY id DESC LIMIT ?",
        (thread_id, namespace, keep),
    )
    return {str(checkpoint_id) for (checkpoint_id,) in rows}


def _namespaces(thread_id: str, connection: apsw.Connection) -> Sequence[str]:
    rows = connection.execute("SELECT DISTINCT namespace FROM checkpoints WHERE thread_id = ?", (thread_id,))
    return [str(namespace) for (namespace,) in rows.fetchall()]


def _drop_runs_of_others(
    thread_id: str, namespace: str, roots: set[str], connection: apsw.Connection
) -> None:
    """Drop the run of a sub-graph unless it belongs to one of the agent's checkpoints that stay."""
    newest = history.newest(thread_id, namespace, connection)
    metadata = None if newest is None else _metadata(thread_id, namespace, newest, connection)
    if metadata is not None and metadata.get("parents", {}).get("") in roots:
        return
    place = (thread_id, namespace)
    connection.execute("DELETE FROM checkpoints WHERE thread_id = ? AND namespace = ?", place)
    connection.execute("DELETE FROM writes WHERE thread_id = ? AND namespace = ?", place)


def _metadata(
    thread_id: str, namespace: str, checkpoint_id: str, connection: apsw.Connection
) -> dict[str, Any]:
    metadata = connection.execute(
        "SELECT metadata FROM checkpoints WHERE thread_id = ? AND namespace = ? AND id = ?",
        (thread_id, namespace, checkpoint_id),
    ).get
    return cast("dict[str, Any]", json.loads(str(metadata)))


def _prune_namespace(thread_id: str, namespace: str, kept: set[str], connection: apsw.Connection) -> None:
    needed = _needed(thread_id, namespace, kept, connection)
    rows = connection.execute(
        "SELECT id, parent_id FROM checkpoints WHERE thread_id = ? AND namespace = ?",
        (thread_id, namespace),
    ).fetchall()
    parents = dict(cast("Sequence[tuple[str, str | None]]", rows))
    links = (needed.seeds | needed.writes.keys()) - kept
    for checkpoint_id in parents.keys() - kept:
        place = (thread_id, namespace, checkpoint_id)
        if checkpoint_id in links:
            _make_link(place, needed, connection)
        else:
            _drop(place, connection)
    _close_gaps((thread_id, namespace), parents, kept | links, connection)


def _needed(thread_id: str, namespace: str, kept: Iterable[str], connection: apsw.Connection) -> _Needed:
    needed = _Needed()
    for checkpoint_id in kept:
        metadata = _metadata(thread_id, namespace, checkpoint_id, connection)
        place = (thread_id, namespace, checkpoint_id)
        walked = history.walk(place, metadata.get(DELTA_COUNTERS, {}), connection)
        needed.seeds.update(walked.seed_of.values())
        for channel, writes in history.select_writes(place, walked, connection).items():
            for write in writes:
                needed.writes.setdefault(write.checkpoint_id, set()).add(channel)
    return needed


def _make_link(place: tuple[str, str, str], needed: _Needed, connection: apsw.Connection) -> None:
    body = "body" if place[2] in needed.seeds else "NULL"
    connection.execute(
        f"UPDATE checkpoints SET pruned = 1, body = {body}"  # noqa: S608
        " WHERE thread_id = ? AND namespace = ? AND id = ?",
        place,
    )
    channels = json.dumps(sorted(needed.writes.get(place[2], ())))
    connection.execute(
        "DELETE FROM writes WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ?"
        " AND channel NOT IN (SELECT value FROM json_each(?))",
        (*place, channels),
    )


def _drop(place: tuple[str, str, str], connection: apsw.Connection) -> None:
    connection.execute("DELETE FROM checkpoints WHERE thread_id = ? AND namespace = ? AND id = ?", place)
    connection.execute(
        "DELETE FROM writes WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ?", place
    )


def _close_gaps(
    line: tuple[str, str],
    parents: Mapping[str, str | None],
    staying: set[str],
    connection: apsw.Connection,
) -> None:
    """Point each checkpoint that stays at its nearest ancestor that stays."""
    for checkpoint_id in staying & parents.keys():
        parent = parents[checkpoint_id]
        passed = {checkpoint_id}
        while parent is not None and parent not in staying and parent not in passed:
            passed.add(parent)
            parent = parents.get(parent)
        if parent != parents[checkpoint_id]:
            connection.execute(
                "UPDATE checkpoints SET parent_id = ? WHERE thread_id = ? AND namespace = ? AND id = ?",
                (parent if parent in staying else None, *line, checkpoint_id),
            )
