"""Logs that are compacted while somebody is half-way through them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta

from agent_runner.adapters.announcers.memory import MemoryAnnouncer
from agent_runner.adapters.artifacts.objects import ObjectArtifactStore
from agent_runner.adapters.store.sqlite import SqliteDatabase, SqliteEventLog, SqliteResourceStore
from agent_runner.adapters.temporal.connection import TemporalConnection
from agent_runner.adapters.workflows.temporal import TemporalWorkflowStarter
from agent_runner.client import AgentRunner
from agent_runner.domain.compaction import compact
from agent_runner.domain.status import fold
from agent_runner.services.container import build_services
from agent_runner.services.retention import Retention
from agent_runner.v1.events_pb2 import ExecutionEvent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus
from chaos.clusters import Cluster
from chaos.watchers import Watched, digest

_AWAY = timedelta(minutes=10)
_EACH = 3


class Compactor:
    """Compacts logs of executions that have ended, an hour before the product would.

    Args:
        address: where late watchers read: a proxy.
    """

    def __init__(self, retention: Retention, address: str, rng: random.Random) -> None:
        self._retention = retention
        self._address = address
        self._rng = rng
        self._offered = 0
        self.done = 0

    async def surprise(self, watched: Watched) -> None:
        """Of each third log that compacting makes shorter: read a part, have it compacted, read on."""
        if len(compacted(watched.events)) == len(watched.events):
            return
        self._offered += 1
        if self._offered % _EACH == 1:
            await self._surprise(watched)

    async def _surprise(self, watched: Watched) -> None:
        late: list[ExecutionEvent] = []
        await self._read(watched, late, most=self._rng.randint(1, len(watched.events) - 1))
        watched.compacted = await self._retention.compact_log(watched.execution_id)
        self.done += watched.compacted
        await self._read(watched, late)
        watched.problems += _misled(watched.events, late)

    async def _read(self, watched: Watched, late: list[ExecutionEvent], most: int = 0) -> None:
        async with AgentRunner(self._address, org="local") as runner:
            after = late[-1].seq if late else 0
            seen = runner.executions.watch(watched.execution_id, after_seq=after, patience=_AWAY)
            async with aclosing(seen):  # type: ignore[type-var]
                async for event in seen:
                    late.append(event)
                    if len(late) == most:
                        return


def _misled(whole: Sequence[ExecutionEvent], late: Sequence[ExecutionEvent]) -> list[str]:
    """What is wrong with what somebody saw who was half-way through when the log was compacted."""
    seqs = [event.seq for event in late]
    if seqs != sorted(set(seqs)):
        return ["a late watcher saw events twice or out of order"]
    if digest(fold(AgentExecutionStatus(), late)) != digest(fold(AgentExecutionStatus(), whole)):
        return [f"a late watcher came to another end over a compacted log: {seqs}"]
    return []


def compacted(events: Sequence[ExecutionEvent]) -> list[ExecutionEvent]:
    """What compacting leaves of a log."""
    copies = [ExecutionEvent() for _ in events]
    for copy, event in zip(copies, events, strict=True):
        copy.CopyFrom(event)
    return compact(copies)


@asynccontextmanager
async def compactor(made: Cluster, address: str, rng: random.Random) -> AsyncIterator[Compactor]:
    """One that writes to the control plane's database beside it."""
    database = SqliteDatabase(made.data / "control-plane.db")
    await database.open()
    services = build_services(
        SqliteResourceStore(database),
        SqliteEventLog(database),
        MemoryAnnouncer(),
        TemporalWorkflowStarter(TemporalConnection.managed(made.temporal.address)),
        ObjectArtifactStore.from_url("memory:///"),
        replicas=True,
    )
    try:
        yield Compactor(services.retention, address, rng)
    finally:
        await services.aclose()
        await database.aclose()
