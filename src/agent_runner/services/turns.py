"""Whose turn it is in a session: one execution at a time, in the order of creation.

A record per session in the store names the execution that has the turn. It changes by compare-and-set,
so that of several processes one alone hands the turn on; it is free when its execution has ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from agent_runner.domain.kinds import AGENT_EXECUTION
from agent_runner.domain.paging import MOST
from agent_runner.domain.phases import phase_name
from agent_runner.errors import AlreadyExistsError, ConflictError, NotFoundError
from agent_runner.ports.stores import ResourceKey, ResourceStore, StoredResource
from agent_runner.services.execution_records import OPEN, ExecutionRecord
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_PENDING

KIND: Final = "session_turn"
"""Ours alone, no kind of the API: the record's id is the session's, its body the execution's id."""
_TRIES: Final = 50


class SessionTurns:
    """Hands out turns."""

    def __init__(self, store: ResourceStore) -> None:
        self._store = store

    async def holder(self, session_id: str) -> str:
        """The execution that had the turn last, and has it unless it has ended; empty before the first."""
        turn = await self._read(session_id)
        return "" if turn is None else turn.body.decode()

    async def give(self, session_id: str, execution_id: str) -> None:
        """Give the first turn of a session that is new."""
        await self._store.put(_turn(session_id, execution_id), expected=0)

    async def claim(
        self, session_id: str, execution_id: str, has_ended: Callable[[str], Awaitable[bool]]
    ) -> bool:
        """Take the turn if it is free; False when another execution has it, or this one had it before.

        Args:
            has_ended: whether an execution holds no turn any more.
        """
        for _ in range(_TRIES):
            turn = await self._read(session_id)
            holder = "" if turn is None else turn.body.decode()
            if holder == execution_id or (holder and not await has_ended(holder)):
                return False
            version = 0 if turn is None else turn.version
            with suppress(ConflictError, AlreadyExistsError):
                await self._store.put(_turn(session_id, execution_id), expected=version)
                return True
        return False

    async def forget(self, session_id: str) -> None:
        with suppress(NotFoundError):
            await self._store.delete(ResourceKey(KIND, session_id))

    async def sessions(self) -> Sequence[str]:
        """Sessions with executions that have not ended as far as lists know.

        The empty one stands for all executions without a session.
        """
        return await self._store.values(AGENT_EXECUTION.name, OPEN)

    async def waiting(self, session_id: str, *, limit: int = MOST) -> list[ExecutionRecord]:
        """Executions of the session that are pending as far as lists know, oldest first."""
        # The first field leads: what has ended in the session is not walked through.
        return await self._list({OPEN: session_id, "phase": phase_name(EXECUTION_PENDING)}, limit)

    async def unfinished(self, session_id: str, *, limit: int = MOST) -> list[ExecutionRecord]:
        """Executions of the session that have not ended as far as lists know, oldest first."""
        return await self._list({OPEN: session_id}, limit)

    async def position(self, record: ExecutionRecord) -> int:
        """How many executions of its session come before a pending one."""
        if not record.session_id:
            return 0
        fields = {OPEN: record.session_id}
        return await self._store.count(AGENT_EXECUTION.name, fields=fields, before=record.id)

    async def _list(self, fields: Mapping[str, str], limit: int) -> list[ExecutionRecord]:
        rows = await self._store.list(AGENT_EXECUTION.name, fields=fields, oldest_first=True, limit=limit)
        return [ExecutionRecord(row) for row in rows]

    async def _read(self, session_id: str) -> StoredResource | None:
        try:
            return await self._store.get(ResourceKey(KIND, session_id))
        except NotFoundError:
            return None


def _turn(session_id: str, execution_id: str) -> StoredResource:
    return StoredResource(ResourceKey(KIND, session_id), "", "", execution_id.encode())
