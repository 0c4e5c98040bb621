"""Checkpoints in one SQLite file of their own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agent_runner.adapters.checkpoints import holding
from agent_runner.adapters.checkpoints.pruning import prune_thread
from agent_runner.adapters.checkpoints.saver import SqliteSaver
from agent_runner.adapters.checkpoints.schema import MIGRATIONS
from agent_runner.adapters.store.database import SqliteDatabase
from agent_runner.ports.agents import Turn


class SqliteCheckpoints:
    """What agents remember, in a file that the workers of one machine may share."""

    def __init__(self, path: Path) -> None:
        # NORMAL: a crash of the process loses nothing; a power cut may lose the newest checkpoints,
        # never the order. The turn then goes on from an older one, and the journal of tool calls,
        # which is kept with FULL, answers for the calls that had finished. It saves an fsync per step.
        self._database = SqliteDatabase(path, migrations=MIGRATIONS, synchronous="NORMAL")
        self._saver = SqliteSaver(self._database)

    @property
    def saver(self) -> SqliteSaver:
        return self._saver

    async def open(self) -> None:
        """Open the file; see `SqliteDatabase.open`."""
        await self._database.open()

    async def aclose(self) -> None:
        await self._database.aclose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def hold(self, turn: Turn) -> Mapping[str, Any]:
        holder = (turn.execution_id, turn.attempt)
        await self._database.write(partial(holding.hold, turn.thread_id, holder))
        return {holding.KEY: holder}

    async def prune(self, thread_id: str, *, keep: int) -> int:
        return await self._database.write(partial(prune_thread, thread_id, keep))

    async def delete(self, thread_id: str) -> None:
        await self._saver.adelete_thread(thread_id)
