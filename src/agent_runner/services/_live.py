"""What is kept in memory of an execution, so that neither reads nor appends ask the database."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from agent_runner.domain.phases import is_terminal
from agent_runner.domain.status import StatusFold
from agent_runner.ports.stores import LogHead
from agent_runner.services._batches import Tail, pack, varint
from agent_runner.services.execution_records import ExecutionRecord
from agent_runner.services.secret_fields import shown
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.status_pb2 import RunStatus
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_PENDING, ExecutionPhase

SNAPSHOT_EVENTS: Final = 200
"""A snapshot is due after this many events, if they are no small part of the whole."""
_STATUS_TAG: Final = b"\x2a"
"""Field 5 (`status`) of AgentExecution, length-delimited."""
_MOST_ENTRIES: Final = 2_000
_MOST_BYTES: Final = 64 << 20


@dataclass(slots=True, eq=False)
class Live:
    """One execution's state in this process.

    Attributes:
        head: where the log stands; None when it must be read before the next append.
        seq: the newest event folded in.
        started: whether its workflow was started by this process; False says nothing.
        milestones: (seq, serialized execution) at changes of phase, for those who subscribe.
        changed: set when anything has changed, and replaced by a new one.
        ended: set when the execution has ended or was deleted.
    """

    execution_id: str
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    record: ExecutionRecord | None = None
    fold: StatusFold = field(default_factory=StatusFold)
    head: LogHead | None = None
    seq: int = 0
    loaded: bool = False
    stale: bool = False
    deleted: bool = False
    started: bool = False
    holder: str = ""
    last_time: str = ""
    cancel_requested: bool = False
    queue_position: int = 0
    tail: Tail = field(default_factory=Tail)
    users: int = 0
    watchers: int = 0
    subscribers: int = 0
    listener: asyncio.Task[None] | None = None
    milestones: list[tuple[int, bytes]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    snapshot_bytes: int = 0
    bytes_since_snapshot: int = 0
    rendered: tuple[int, int, bytes, bytes] = (-1, -1, b"", b"")
    shown: tuple[bytes, bytes] = (b"", b"")

    @property
    def phase(self) -> ExecutionPhase.ValueType:
        return self.fold.phase or EXECUTION_PENDING

    @property
    def terminal(self) -> bool:
        return is_terminal(self.fold.phase)

    @property
    def size(self) -> int:
        """Bytes it takes up in memory, roughly."""
        record = len(self.record.resource.body) if self.record is not None else 0
        return record + self.tail.size + 2 * self.snapshot_bytes + self.bytes_since_snapshot + 2_000

    def status(self) -> AgentExecutionStatus:
        """A copy of the status."""
        copy = AgentExecutionStatus()
        copy.CopyFrom(self.fold.status)
        return copy

    def snapshot_due(self, events: int, size: int) -> bool:
        """Whether an append of that many events and bytes should carry a snapshot.

        Snapshots come at growing distances, so that writing them all costs no more than a few times
        the last one, and reading the events since costs no more than the snapshot.
        """
        if self.head is None:
            return False
        count = self.seq + events - self.head.snapshot_seq
        return count >= SNAPSHOT_EVENTS and self.bytes_since_snapshot + size >= self.snapshot_bytes

    def advance(self, events: Sequence[tuple[int, ExecutionEvent, bytes]]) -> None:
        """Fold events in that are in the log, and hand them to those who watch."""
        for seq, event, body in events:
            before = self.fold.phase
            self.fold.apply(event)
            self.seq = seq
            if self.phase != EXECUTION_PENDING:
                self.queue_position = 0
            # Noted here, since reading it from the status would join the texts of the fold each time.
            self.cancel_requested = self.cancel_requested or event.HasField("cancel_requested")
            self.bytes_since_snapshot += len(body)
            if self.fold.phase != before and self.subscribers and not self.terminal:
                self.milestones.append((seq, self.render()))
        if events:
            self.last_time = events[-1][1].time or self.last_time
        self.tail.extend(pack((seq, body) for seq, _event, body in events))
        self.announce()

    def milestone_after(self, seq: int) -> tuple[int, bytes] | None:
        """The first change of phase after `seq`; None when there is none."""
        return next((milestone for milestone in self.milestones if milestone[0] > seq), None)

    def announce(self) -> None:
        """Wake everybody who waits for a change."""
        if self.terminal or self.deleted:
            self.ended.set()
        self.changed.set()
        self.changed = asyncio.Event()

    def render(self) -> bytes:
        """The serialized execution as it is now, made once for all who ask at the same point."""
        assert self.record is not None
        body = self._shown_body(self.record)
        seq, place, of, rendered = self.rendered
        if (seq, place) != (self.seq, self.queue_position) or of is not body:
            rendered = self._render(body)
            self.rendered = (self.seq, self.queue_position, body, rendered)
        return rendered

    def _shown_body(self, record: ExecutionRecord) -> bytes:
        """The stored execution with its secrets masked; made once per version of the record."""
        body = record.resource.body
        if self.shown[0] is not body:
            self.shown = (body, shown(record.message()).SerializeToString())
        return self.shown[1]

    def _render(self, body: bytes) -> bytes:
        # Serialized messages joined are the messages merged: the stored execution, whose status holds
        # the audit alone, and the folded status.
        parts = [self.fold.status.SerializeToString()]
        if self.fold.phase != self.phase or self.queue_position:
            run = RunStatus(queue_position=self.queue_position)
            parts.append(AgentExecutionStatus(phase=self.phase, run=run).SerializeToString())
        pieces = [body]
        for part in parts:
            pieces += (_STATUS_TAG, varint(len(part)), part)
        return b"".join(pieces)

    def execution(self) -> AgentExecution:
        """The execution with its status, as a message of the caller's own."""
        return AgentExecution.FromString(self.render())


class LiveExecutions:
    """The executions in memory: those in use, and the ones used last."""

    def __init__(self, *, entries: int = _MOST_ENTRIES, size: int = _MOST_BYTES) -> None:
        self._most_entries = entries
        self._most_bytes = size
        self._entries: OrderedDict[str, Live] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._total = 0

    @asynccontextmanager
    async def use(self, execution_id: str) -> AsyncIterator[Live]:
        """The entry, which stays in memory until the context is left."""
        live = self._entries.get(execution_id)
        if live is None:
            live = self._entries[execution_id] = Live(execution_id)
        live.users += 1
        try:
            yield live
        finally:
            live.users -= 1
            self._settle(live)

    def peek(self, execution_id: str) -> Live | None:
        """The entry if there is one."""
        live = self._entries.get(execution_id)
        return live if live is not None and live.loaded else None

    def forget(self, execution_id: str) -> None:
        """Drop an entry that has no users; one in use is dropped by the last of them."""
        live = self._entries.get(execution_id)
        if live is not None:
            live.deleted = True
            live.announce()
            if not live.users:
                self._remove(execution_id)

    def _settle(self, live: Live) -> None:
        key = live.execution_id
        if self._entries.get(key) is not live:
            return
        if not live.users and (live.deleted or not live.loaded):
            self._remove(key)
            return
        size = live.size
        self._total += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self._entries.move_to_end(key)
        if self._total > self._most_bytes or len(self._entries) > self._most_entries:
            self._evict()

    def _evict(self) -> None:
        """Drop those used longest ago which nobody uses now."""
        while self._total > self._most_bytes or len(self._entries) > self._most_entries:
            unused = next((key for key, live in self._entries.items() if not live.users), None)
            if unused is None:
                return
            self._remove(unused)

    def _remove(self, key: str) -> None:
        self._entries.pop(key, None)
        self._total -= self._sizes.pop(key, 0)


def with_snapshot(head: LogHead, status: AgentExecutionStatus) -> LogHead:
    """The head, with the status as its snapshot."""
    return replace(head, snapshot_seq=head.last_seq, snapshot=status.SerializeToString())
