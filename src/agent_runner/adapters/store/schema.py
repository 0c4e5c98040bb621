"""Schema of the SQLite file that holds resources and event logs, one script per version.

A script that has been released is never changed; a change is a new script at the end.
"""

from __future__ import annotations

from typing import Final

_V1 = """
CREATE TABLE resources (
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    org TEXT NOT NULL,
    slug TEXT NOT NULL,
    version INTEGER NOT NULL,
    fields TEXT NOT NULL,  -- JSON object of strings
    body BLOB NOT NULL,    -- last, so that reading the others does not read its overflow pages
    UNIQUE (kind, id)
) STRICT;
CREATE UNIQUE INDEX resources_by_slug ON resources (kind, org, slug) WHERE slug <> '';
CREATE INDEX resources_by_slug_of_any_org ON resources (kind, slug, id) WHERE slug <> '';
CREATE INDEX resources_by_org ON resources (kind, org, id);

-- An index over `fields`, kept by the triggers so that no write can forget it.
CREATE TABLE resource_fields (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    id TEXT NOT NULL,
    PRIMARY KEY (kind, name, value, id)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER resource_added AFTER INSERT ON resources BEGIN
    INSERT INTO resource_fields SELECT NEW.kind, key, value, NEW.id FROM json_each(NEW.fields);
END;
CREATE TRIGGER resource_changed AFTER UPDATE OF fields ON resources WHEN OLD.fields <> NEW.fields BEGIN
    DELETE FROM resource_fields WHERE (kind, name, value, id) IN
        (SELECT OLD.kind, key, value, OLD.id FROM json_each(OLD.fields));
    INSERT INTO resource_fields SELECT NEW.kind, key, value, NEW.id FROM json_each(NEW.fields);
END;
CREATE TRIGGER resource_removed AFTER DELETE ON resources BEGIN
    DELETE FROM resource_fields WHERE (kind, name, value, id) IN
        (SELECT OLD.kind, key, value, OLD.id FROM json_each(OLD.fields));
END;

CREATE TABLE logs (
    id INTEGER PRIMARY KEY,
    execution_id TEXT NOT NULL UNIQUE,
    last_seq INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    position INTEGER NOT NULL,
    snapshot_seq INTEGER NOT NULL
) STRICT;
-- Apart from `logs`, so that an append without a new snapshot does not rewrite it.
CREATE TABLE snapshots (log INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
-- id = log * 2^32 + seq: events of one log lie side by side, in order, with no index beside them.
CREATE TABLE events (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
"""

_V2 = "ALTER TABLE logs ADD COLUMN token BLOB NOT NULL DEFAULT x''"

_V3 = """
-- Executions that have not ended carry their session in a field of its own; the trigger indexes it.
UPDATE resources SET fields = json_set(fields, '$.open', coalesce(fields ->> '$.session_id', ''))
WHERE (kind, id) IN (
    SELECT kind, id FROM resource_fields WHERE kind = 'agent_execution' AND name = 'phase'
    AND value IN ('EXECUTION_PENDING', 'EXECUTION_IN_PROGRESS')
);
"""

MIGRATIONS: Final = (_V1, _V2, _V3)
