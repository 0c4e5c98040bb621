"""Walking back from a checkpoint to what its delta channels are built from.

A delta channel stores its whole value only now and then; in between, its value is the newest stored
one among the ancestors (the seed) plus the writes since.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import apsw
from langgraph.checkpoint.base import writes_sort_key

_ANCESTORS = """
WITH RECURSIVE ancestors (id, parent_id, stored) AS (
    SELECT id, parent_id, '[]' FROM checkpoints WHERE thread_id = ?1 AND namespace = ?2 AND id = ?3
    UNION ALL
    SELECT c.id, c.parent_id, c.stored FROM ancestors a CROSS JOIN checkpoints c
    ON c.thread_id = ?1 AND c.namespace = ?2 AND c.id = a.parent_id
)
SELECT id, stored FROM ancestors
"""
"""The checkpoint itself, then its ancestors from near to far. SQLite makes the rows as they are read,
so a reader that stops early ends the walk."""


class StoredWrite(NamedTuple):
    """One write of a task, as it is kept."""

    checkpoint_id: str
    task_path: str
    task_id: str
    idx: int
    channel: str
    type: str
    value: bytes


@dataclass(slots=True)
class Walk:
    """What a walk found, by channel.

    Attributes:
        chains: ancestors whose writes count, from near to far, the seed's own among them.
        seed_of: the ancestor that stores the channel's value; none when the walk reached the root.
    """

    chains: dict[str, list[str]]
    seed_of: dict[str, str] = field(default_factory=dict)

    def seeds(self) -> dict[str, list[str]]:
        """The channels each seed stores a value for."""
        seeds: dict[str, list[str]] = {}
        for channel, checkpoint_id in self.seed_of.items():
            seeds.setdefault(checkpoint_id, []).append(channel)
        return seeds


def walk(place: tuple[str, str, str | None], channels: Iterable[str], connection: apsw.Connection) -> Walk:
    """Walk from a checkpoint (the newest, when the place names none) to the seeds of the channels."""
    found = Walk({channel: [] for channel in channels})
    thread_id, namespace, checkpoint_id = place
    start = checkpoint_id or newest(thread_id, namespace, connection)
    if start is None:
        return found
    wanted = set(found.chains)
    visited = {start}
    rows = connection.execute(_ANCESTORS, (thread_id, namespace, start))
    next(rows, None)  # the checkpoint itself: its own writes belong to the step after it
    for ancestor, stored in cast("Iterable[tuple[str, str]]", rows):
        # A checkpoint put again under a descendant of itself closes a loop.
        if not wanted or ancestor in visited:
            break
        visited.add(ancestor)
        for channel in wanted:
            found.chains[channel].append(ancestor)
        seeded = wanted.intersection(json.loads(stored))
        found.seed_of.update(dict.fromkeys(seeded, ancestor))
        wanted -= seeded
    return found


def newest(thread_id: str, namespace: str, connection: apsw.Connection) -> str | None:
    """Id of the newest checkpoint that is not pruned."""
    found: str | None = connection.execute(
        "SELECT id FROM checkpoints WHERE thread_id = ? AND namespace = ? AND NOT pruned"
        " ORDER BY id DESC LIMIT 1",
        (thread_id, namespace),
    ).get
    return found


def select_writes(
    place: tuple[str, str, str | None], walked: Walk, connection: apsw.Connection
) -> dict[str, Sequence[StoredWrite]]:
    """The writes of each channel along its chain, from old to new, in the order the run applied them."""
    return {
        channel: _writes_of_chain(place, channel, chain, connection) if chain else []
        for channel, chain in walked.chains.items()
    }


def _writes_of_chain(
    place: tuple[str, str, str | None], channel: str, chain: Sequence[str], connection: apsw.Connection
) -> Sequence[StoredWrite]:
    rows = connection.execute(
        "SELECT w.checkpoint_id, w.task_path, w.task_id, w.idx, w.channel, w.type, w.value"
        " FROM json_each(?) link CROSS JOIN writes w"
        " ON w.thread_id = ? AND w.namespace = ? AND w.checkpoint_id = link.value AND w.channel = ?",
        (json.dumps(chain), *place[:2], channel),
    )
    by_checkpoint: dict[str, list[StoredWrite]] = {checkpoint_id: [] for checkpoint_id in reversed(chain)}
    for write in in_order(rows):
        by_checkpoint[write.checkpoint_id].append(write)
    return [write for writes in by_checkpoint.values() for write in writes]


def in_order(rows: Iterable[Sequence[Any]]) -> Sequence[StoredWrite]:
    """Rows of writes, within one checkpoint in the order in which the run applies them."""
    writes = [StoredWrite(*row) for row in rows]
    writes.sort(key=lambda write: writes_sort_key(write.task_path, write.task_id, write.idx))
    return writes


def select_body(
    place: tuple[str, str, str | None], checkpoint_id: str, connection: apsw.Connection
) -> tuple[str, bytes]:
    """The serialized checkpoint, with the name of its encoding."""
    row = connection.execute(
        "SELECT type, body FROM checkpoints WHERE thread_id = ? AND namespace = ? AND id = ?",
        (*place[:2], checkpoint_id),
    ).get
    return cast("tuple[str, bytes]", row)
