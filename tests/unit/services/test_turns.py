"""What the queue of a session costs follows from those in it, not from those that have ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import apsw
import pytest

from agent_runner.adapters.store.sqlite import SqliteDatabase, SqliteResourceStore
from agent_runner.ports.stores import StoredResource
from agent_runner.services.execution_records import fields_of, key_of
from agent_runner.services.turns import SessionTurns
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_COMPLETED,
    EXECUTION_IN_PROGRESS,
    EXECUTION_PENDING,
    ExecutionPhase,
)


class Steps:
    """Instructions of SQLite's machine, on all connections opened meanwhile."""

    def __init__(self) -> None:
        self.count = 0

    def watch(self, connection: apsw.Connection) -> None:
        connection.set_progress_handler(self._step, 1)

    def _step(self) -> bool:
        self.count += 1
        return False

    def taken(self) -> int:
        counted, self.count = self.count, 0
        return counted


@pytest.fixture
def steps() -> Iterator[Steps]:
    steps = Steps()
    apsw.connection_hooks.append(steps.watch)
    yield steps
    apsw.connection_hooks.remove(steps.watch)


@pytest.fixture
async def store(tmp_path: Path, steps: Steps) -> AsyncIterator[SqliteResourceStore]:
    async with SqliteDatabase(tmp_path / "test.db", synchronous="NORMAL", readers=1) as database:
        yield SqliteResourceStore(database)


async def add(store: SqliteResourceStore, phase: ExecutionPhase.ValueType, *numbers: int) -> None:
    for number in numbers:
        execution = AgentExecution()
        execution.spec.session_id = "ses-1"
        key, fields = key_of(f"aex-{number:04}"), fields_of(execution, phase)
        await store.put(StoredResource(key, "", "", b"", fields=fields), expected=0)


async def costs(turns: SessionTurns, steps: Steps) -> list[int]:
    """What each question took; the answers are right."""
    steps.taken()
    taken = []
    waiting = await turns.waiting("ses-1", limit=10)
    taken.append(steps.taken())
    unfinished = await turns.unfinished("ses-1", limit=5)
    taken.append(steps.taken())
    assert [record.id for record in waiting] == ["aex-9001", "aex-9002"]
    assert [record.id for record in unfinished] == ["aex-9000", "aex-9001", "aex-9002"]
    for place, record in enumerate(unfinished):
        assert await turns.position(record) == place
    taken.append(steps.taken())
    assert await turns.sessions() == ["ses-1"]
    taken.append(steps.taken())
    return taken


async def test_what_has_ended_in_a_session_costs_its_queue_nothing(
    store: SqliteResourceStore, steps: Steps
) -> None:
    turns = SessionTurns(store)
    await add(store, EXECUTION_IN_PROGRESS, 9000)
    await add(store, EXECUTION_PENDING, 9001, 9002)
    await costs(turns, steps)  # the connection reads the schema
    before = await costs(turns, steps)

    await add(store, EXECUTION_COMPLETED, *range(500))

    assert all(before)
    assert await costs(turns, steps) == before
