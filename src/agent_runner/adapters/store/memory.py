"""Resources and event logs in memory, for tests and for stacks that leave nothing behind."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from agent_runner.adapters.store.checks import check_head, checked_order, within
from agent_runner.errors import AlreadyExistsError, ConflictError, NotFoundError
from agent_runner.ports.stores import LogHead, ResourceKey, StoredResource


class MemoryResourceStore:
    """Resources in a dictionary."""

    def __init__(self) -> None:
        self._resources: dict[ResourceKey, StoredResource] = {}
        self._slugs: dict[tuple[str, str, str], ResourceKey] = {}

    async def get(self, key: ResourceKey) -> StoredResource:
        try:
            return self._resources[key]
        except KeyError:
            raise NotFoundError(key.kind, key.id) from None

    async def find(self, kind: str, org: str | None, slug: str) -> StoredResource | None:
        if not slug:  # the empty slug names nothing
            return None
        if org is not None:
            key = self._slugs.get((kind, org, slug))
            return None if key is None else self._resources[key]
        matches = [k for (a_kind, _, a_slug), k in self._slugs.items() if (a_kind, a_slug) == (kind, slug)]
        return self._resources[min(matches, key=lambda key: key.id)] if matches else None

    async def put(self, resource: StoredResource, *, expected: int) -> int:
        key, slug = resource.key, _slug_of(resource)
        stored = self._resources.get(key)
        if expected and (stored is None or stored.version != expected):
            raise ConflictError(key.kind, key.id, expected)
        taken = self._slugs.get(slug, key) != key if resource.slug else False
        if taken or (stored is not None and not expected):
            raise AlreadyExistsError(key.kind, resource.slug or key.id)
        if stored is not None:
            self._slugs.pop(_slug_of(stored), None)
        if resource.slug:
            self._slugs[slug] = key
        self._resources[key] = replace(resource, version=expected + 1, fields=dict(resource.fields))
        return expected + 1

    async def delete(self, key: ResourceKey) -> StoredResource:
        found = await self.get(key)
        del self._resources[key]
        self._slugs.pop(_slug_of(found), None)
        return found

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
        wanted = set((fields or {}).items())
        matches = [
            resource
            for key, resource in self._resources.items()
            if key.kind == kind
            and (org is None or resource.org == org)
            and wanted <= resource.fields.items()
            and (oldest_first or before is None or key.id < before)
            and (not oldest_first or after is None or key.id > after)
        ]
        matches.sort(key=lambda resource: resource.key.id, reverse=not oldest_first)
        return matches[: max(limit, 0)]

    async def count(
        self,
        kind: str,
        *,
        org: str | None = None,
        fields: Mapping[str, str] | None = None,
        before: str | None = None,
    ) -> int:
        found = await self.list(kind, org=org, fields=fields, before=before, limit=len(self._resources))
        return len(found)

    async def values(self, kind: str, field: str) -> Sequence[str]:
        found = {
            resource.fields[field]
            for key, resource in self._resources.items()
            if key.kind == kind and field in resource.fields
        }
        return sorted(found)


def _slug_of(resource: StoredResource) -> tuple[str, str, str]:
    return resource.key.kind, resource.org, resource.slug


@dataclass(slots=True)
class _Log:
    head: LogHead = field(default_factory=LogHead)
    events: list[tuple[int, bytes]] = field(default_factory=list)


class MemoryEventLog:
    """Event logs in lists."""

    def __init__(self) -> None:
        self._logs: dict[str, _Log] = {}

    async def head(self, execution_id: str) -> LogHead:
        log = self._logs.get(execution_id)
        return LogHead() if log is None else log.head

    async def append(
        self, execution_id: str, events: Sequence[bytes], *, expected_seq: int, head: LogHead
    ) -> None:
        check_head(events, expected_seq, head)
        log = self._logs.get(execution_id) or _Log()
        if log.head.last_seq != expected_seq:
            raise ConflictError("event log", execution_id, expected_seq)
        log.events.extend(enumerate(events, start=expected_seq + 1))
        log.head = head
        self._logs[execution_id] = log

    async def read(
        self, execution_id: str, *, after_seq: int = 0, limit: int = 1000, most_bytes: int = 16 << 20
    ) -> Sequence[tuple[int, bytes]]:
        log = self._logs.get(execution_id)
        if log is None:
            return []
        start = bisect_right(log.events, after_seq, key=lambda event: event[0])
        return list(within(islice(log.events, start, None), limit, most_bytes))

    async def replace(self, execution_id: str, events: Sequence[tuple[int, bytes]]) -> None:
        last_seq = checked_order(events)
        log = self._logs.get(execution_id)
        if log is None:
            raise NotFoundError("event log", execution_id)
        if log.head.last_seq != last_seq:
            raise ConflictError("event log", execution_id, last_seq)
        log.events = list(events)

    async def delete(self, execution_id: str) -> None:
        self._logs.pop(execution_id, None)
