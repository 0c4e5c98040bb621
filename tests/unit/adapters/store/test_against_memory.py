"""SQLite does what the adapters in memory do, whatever is asked in whatever order."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent_runner.adapters.store.memory import MemoryEventLog, MemoryResourceStore
from agent_runner.adapters.store.sqlite import SqliteDatabase, SqliteEventLog, SqliteResourceStore
from agent_runner.errors import AgentRunnerError
from agent_runner.ports.stores import LogHead, ResourceKey, StoredResource

KINDS = st.sampled_from(["agent", "session"])
IDS = st.sampled_from([f"id-{number}" for number in range(6)])
ORGS = st.sampled_from(["", "acme", "b"])
SLUGS = st.sampled_from(["", "one", "two", "drei/ü"])
FIELDS = st.dictionaries(st.sampled_from(["phase", "session", ""]), st.sampled_from(["", "a", "b"]))
KEYS = st.builds(ResourceKey, KINDS, IDS)
RESOURCES = st.builds(
    StoredResource, key=KEYS, org=ORGS, slug=SLUGS, body=st.binary(max_size=20), fields=FIELDS
)


class SideBySide(RuleBasedStateMachine):
    """Asks both and compares answers, errors included."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.open()

    def open(self) -> None:
        self.database = SqliteDatabase(Path(self.folder.name) / "store.db", synchronous="NORMAL", readers=1)
        self.loop.run_until_complete(self.database.open())
        self.opened()

    def opened(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.loop.run_until_complete(self.database.aclose())

    def teardown(self) -> None:
        self.close()
        self.loop.close()
        self.folder.cleanup()

    def compare(self, one: Awaitable[Any], other: Awaitable[Any]) -> Any:
        answer, expected = self.outcome(one), self.outcome(other)
        assert answer == expected
        return answer

    def outcome(self, asked: Awaitable[Any]) -> Any:
        async def ask() -> Any:
            return await asked

        try:
            found = self.loop.run_until_complete(ask())
        except AgentRunnerError as error:
            return type(error), str(error)
        return list(found) if isinstance(found, list | tuple) else found

    @rule()
    def restart(self) -> None:
        self.close()
        self.open()


class Resources(SideBySide):
    def opened(self) -> None:
        self.sqlite = SqliteResourceStore(self.database)

    def __init__(self) -> None:
        self.memory = MemoryResourceStore()
        super().__init__()

    @rule(resource=RESOURCES)
    def create(self, resource: StoredResource) -> None:
        self.compare(self.sqlite.put(resource, expected=0), self.memory.put(resource, expected=0))

    @rule(resource=RESOURCES, behind=st.sampled_from([0, 0, 0, 1]))
    def change(self, resource: StoredResource, behind: int) -> None:
        stored = self.outcome(self.memory.get(resource.key))
        expected = max(stored.version - behind, 1) if isinstance(stored, StoredResource) else 1
        self.compare(
            self.sqlite.put(resource, expected=expected), self.memory.put(resource, expected=expected)
        )

    @rule(key=KEYS)
    def delete(self, key: ResourceKey) -> None:
        self.compare(self.sqlite.delete(key), self.memory.delete(key))

    @rule(key=KEYS)
    def get(self, key: ResourceKey) -> None:
        self.compare(self.sqlite.get(key), self.memory.get(key))

    @rule(kind=KINDS, org=st.none() | ORGS, slug=SLUGS)
    def find(self, kind: str, org: str | None, slug: str) -> None:
        self.compare(self.sqlite.find(kind, org, slug), self.memory.find(kind, org, slug))

    @rule(
        kind=KINDS,
        org=st.none() | ORGS,
        fields=st.none() | FIELDS,
        limit=st.integers(0, 4),
        edge=st.none() | IDS,
        oldest_first=st.booleans(),
    )
    def list(
        self,
        kind: str,
        org: str | None,
        fields: dict[str, str] | None,
        limit: int,
        edge: str | None,
        oldest_first: bool,
    ) -> None:
        asked: dict[str, Any] = {"org": org, "fields": fields, "limit": limit, "oldest_first": oldest_first}
        asked["after" if oldest_first else "before"] = edge
        self.compare(self.sqlite.list(kind, **asked), self.memory.list(kind, **asked))

    @rule(kind=KINDS, org=st.none() | ORGS, fields=st.none() | FIELDS, before=st.none() | IDS)
    def count(self, kind: str, org: str | None, fields: dict[str, str] | None, before: str | None) -> None:
        asked: dict[str, Any] = {"org": org, "fields": fields, "before": before}
        self.compare(self.sqlite.count(kind, **asked), self.memory.count(kind, **asked))

    @rule(kind=KINDS, field=st.sampled_from(["phase", "session", ""]))
    def values(self, kind: str, field: str) -> None:
        self.compare(self.sqlite.values(kind, field), self.memory.values(kind, field))

    @invariant()
    def the_index_of_fields_is_whole(self) -> None:
        rows = self.loop.run_until_complete(self.database.read(_index_rows))
        assert rows[0] == rows[1]


def _index_rows(connection: Any) -> tuple[Any, Any]:
    return (
        connection.execute(
            "SELECT kind, name, value, id FROM resource_fields ORDER BY 1, 2, 3, 4"
        ).fetchall(),
        connection.execute(
            "SELECT r.kind, f.key, f.value, r.id FROM resources r, json_each(r.fields) f ORDER BY 1, 2, 3, 4"
        ).fetchall(),
    )


class EventLogs(SideBySide):
    EXECUTIONS = st.sampled_from(["ex-1", "ex-2", "ex-3"])

    def opened(self) -> None:
        self.sqlite = SqliteEventLog(self.database)

    def __init__(self) -> None:
        self.memory = MemoryEventLog()
        super().__init__()

    @rule(
        execution=EXECUTIONS,
        events=st.lists(st.binary(max_size=20), max_size=5),
        off=st.sampled_from([0, 0, 0, 0, 1, -1]),
        snapshot=st.binary(max_size=3),
    )
    def append(self, execution: str, events: Any, off: int, snapshot: bytes) -> None:
        expected = max(self.outcome(self.memory.head(execution)).last_seq + off, 0)
        head = LogHead(expected + len(events), expected % 3, len(events), expected, snapshot)
        self.compare(
            self.sqlite.append(execution, events, expected_seq=expected, head=head),
            self.memory.append(execution, events, expected_seq=expected, head=head),
        )

    @rule(execution=EXECUTIONS, keep=st.sets(st.integers(0, 20)), off=st.sampled_from([0, 0, 1]))
    def compact(self, execution: str, keep: set[int], off: int) -> None:
        events = self.outcome(self.memory.read(execution))
        kept = [event for index, event in enumerate(events[:-1]) if index in keep] + events[-1:]
        if off:
            kept = kept[:-1]
        self.compare(self.sqlite.replace(execution, kept), self.memory.replace(execution, kept))

    @rule(execution=EXECUTIONS)
    def delete(self, execution: str) -> None:
        self.compare(self.sqlite.delete(execution), self.memory.delete(execution))

    @rule(execution=EXECUTIONS, after_seq=st.integers(0, 12), limit=st.integers(0, 6))
    def read(self, execution: str, after_seq: int, limit: int) -> None:
        asked = {"after_seq": after_seq, "limit": limit}
        self.compare(self.sqlite.read(execution, **asked), self.memory.read(execution, **asked))

    @invariant()
    def heads_and_events_agree(self) -> None:
        for execution in ("ex-1", "ex-2", "ex-3"):
            self.compare(self.sqlite.head(execution), self.memory.head(execution))
            self.compare(self.sqlite.read(execution), self.memory.read(execution))


TestResources = Resources.TestCase
TestResources.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestEventLogs = EventLogs.TestCase
TestEventLogs.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
