"""Where resources and events are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ResourceKey:
    """Names one resource: `kind` as in `ApiResourceKind`, such as `agent_execution`, and its id."""

    kind: str
    id: str


@dataclass(frozen=True, slots=True)
class StoredResource:
    """One resource as it is kept.

    Attributes:
        org: organization, may be empty.
        slug: unique within kind and org unless empty; empty where names may repeat.
        body: the serialized message.
        version: counts writes, from 1; 0 for one not stored yet.
        fields: values `list` can filter by, such as `session_id` or `phase`.
    """

    key: ResourceKey
    org: str
    slug: str
    body: bytes
    version: int = 0
    fields: Mapping[str, str] = field(default_factory=dict)


class ResourceStore(Protocol):
    """Keeps serialized resources. Every adapter passes `tests/contract/test_resource_store.py`."""

    async def get(self, key: ResourceKey) -> StoredResource:
        """Read one.

        Raises:
            NotFoundError: there is none.
        """
        ...

    async def find(self, kind: str, org: str | None, slug: str) -> StoredResource | None:
        """Read by slug; `org` None looks in every organization and takes the oldest match."""
        ...

    async def put(self, resource: StoredResource, *, expected: int) -> int:
        """Write if the stored version is still `expected` (0: must not exist yet).

        Returns:
            The new version, `expected + 1`.

        Raises:
            ConflictError: the stored version is another one; nothing was written.
            AlreadyExistsError: another resource of this kind and org has the slug, or, with
                `expected` 0, the id; nothing was written.
        """
        ...

    async def delete(self, key: ResourceKey) -> StoredResource:
        """Remove one and return what it was.

        Raises:
            NotFoundError: there is none.
        """
        ...

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
        """List by id, newest first, or oldest first.

        Ids sort by time of creation, so `before` (or `after`, with `oldest_first`) the last id seen
        is the next page.

        Args:
            org: None for every organization.
            fields: values the resource's `fields` must have, all of them.
            limit: the most to return.
        """
        ...

    async def count(
        self,
        kind: str,
        *,
        org: str | None = None,
        fields: Mapping[str, str] | None = None,
        before: str | None = None,
    ) -> int:
        """How many `list` would find, without reading them.

        Args:
            before: count those with smaller ids alone.
        """
        ...

    async def values(self, kind: str, field: str) -> Sequence[str]:
        """Which values resources of a kind have for a field, each once, in order."""
        ...


@dataclass(frozen=True, slots=True)
class LogHead:
    """Where an execution's log stands.

    Attributes:
        last_seq: `seq` of the newest event, 0 before the first.
        attempt: the attempt that may append, 0 before the first.
        position: how many events that attempt has appended.
        token: SHA-256 of the token that attempt was given; empty where it was given none.
        snapshot_seq: `seq` the snapshot includes.
        snapshot: serialized AgentExecutionStatus; empty before the first.
    """

    last_seq: int = 0
    attempt: int = 0
    position: int = 0
    snapshot_seq: int = 0
    snapshot: bytes = b""
    token: bytes = b""


class EventLog(Protocol):
    """Append-only events per execution. Every adapter passes `tests/contract/test_event_log.py`.

    What an append or a snapshot has returned from is durable: it survives a crash of the process and
    of the machine.
    """

    async def head(self, execution_id: str) -> LogHead:
        """Where the log stands; an empty head for an execution without events."""
        ...

    async def append(
        self, execution_id: str, events: Sequence[bytes], *, expected_seq: int, head: LogHead
    ) -> None:
        """Append serialized events as `expected_seq + 1` and on, and replace the head, at once.

        The fencing and folding rules live above, in `services`; the log makes the step atomic.

        Raises:
            ConflictError: `last_seq` is not `expected_seq`; nothing was written.
        """
        ...

    async def read(
        self, execution_id: str, *, after_seq: int = 0, limit: int = 1000, most_bytes: int = 16 << 20
    ) -> Sequence[tuple[int, bytes]]:
        """(seq, event) pairs in order, those with `seq > after_seq`.

        Args:
            limit: the most events to return.
            most_bytes: none is added to so many bytes of events; the first one is returned at any size.
        """
        ...

    async def replace(self, execution_id: str, events: Sequence[tuple[int, bytes]]) -> None:
        """Put compacted events in place of all there are; the head stays as it is.

        Args:
            events: by rising seq, which may have gaps; the last one is the log's newest, so that
                what was appended since the log was read is never lost.

        Raises:
            ConflictError: the last given is not the newest of the log; nothing was changed.
            NotFoundError: there is no such log.
        """
        ...

    async def delete(self, execution_id: str) -> None:
        """Forget the execution's log; nothing happens when there is none."""
        ...
