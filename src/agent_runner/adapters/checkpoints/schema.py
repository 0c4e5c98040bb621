"""Schema of the SQLite file that holds checkpoints, one script per version.

A script that has been released is never changed; a change is a new script at the end.
"""

from __future__ import annotations

from typing import Final

_V1 = """
CREATE TABLE checkpoints (
    thread_id TEXT NOT NULL,
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    parent_id TEXT,
    -- 1: pruned; stays as a link in the history of delta channels, and nobody else sees it.
    pruned INTEGER NOT NULL DEFAULT 0,
    metadata TEXT NOT NULL,  -- JSON
    -- JSON list of the channels whose values stand in `body`, so that walking back in history to a
    -- stored value reads no bodies.
    stored TEXT NOT NULL,
    type TEXT NOT NULL,
    body BLOB,               -- NULL once pruned, unless it holds a value somebody builds upon
    UNIQUE (thread_id, namespace, id)
) STRICT;

CREATE TABLE writes (
    thread_id TEXT NOT NULL,
    namespace TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL,
    task_id TEXT NOT NULL,
    idx INTEGER NOT NULL,
    task_path TEXT NOT NULL,
    channel TEXT NOT NULL,
    type TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (thread_id, namespace, checkpoint_id, task_id, idx)
) STRICT, WITHOUT ROWID;
"""

_V2 = """
CREATE TABLE holders (
    thread_id TEXT PRIMARY KEY,
    execution_id TEXT NOT NULL,
    attempt INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""

MIGRATIONS: Final = (_V1, _V2)
