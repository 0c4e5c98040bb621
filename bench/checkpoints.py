"""What the checkpoints of a short turn weigh, and whether later turns weigh more."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

from agent_runner.adapters.checkpoints.sqlite import SqliteCheckpoints
from bench import store
from bench.plans import Plan
from bench.rows import Floor, Row, most


async def checkpoints(folder: Path, plan: Plan) -> list[Row]:
    """Bytes on disk of each short turn of one thread, nothing pruned, beside the engine library's own."""
    early, weight = await _ours(folder / "ours.db", plan.turns)
    floors: tuple[Floor, ...] = ()
    if importlib.util.find_spec("langgraph.checkpoint.sqlite"):
        floors = (Floor("the library's", await _library(folder / "library.db", plan.turns), "kB"),)
    return [
        Row(
            f"checkpoints of a short turn, over {plan.turns} turns",
            weight,
            "kB",
            plan.turns,
            floors=floors,
            budget=most(20),
            note=f"{early:.1f} kB a turn over the first quarter",
        )
    ]


async def _ours(path: Path, turns: int) -> tuple[float, float]:
    """kB a turn, over the first quarter and over all."""
    quarter, done, early = max(turns // 4, 1), 0, 0.0
    async with SqliteCheckpoints(path) as opened:

        async def weigh() -> None:
            nonlocal done, early
            done += 1
            if done == quarter:
                early = await asyncio.to_thread(store.stored_bytes, path) / done / 1000

        await store.turns("ours", opened.saver, turns, weigh)
    return early, await asyncio.to_thread(store.stored_bytes, path) / turns / 1000


async def _library(path: Path, turns: int) -> float:
    async with store.library_saver(path) as saver:
        await store.turns("the library's", saver, turns, store.nothing)
    return await asyncio.to_thread(store.stored_bytes, path) / turns / 1000
