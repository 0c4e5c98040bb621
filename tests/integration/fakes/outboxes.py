"""What a runner has on its disk of events it could not send, read while it holds it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from agent_runner.adapters.status.spool_files import SpoolFile
from agent_runner.v1.events_pb2 import ExecutionEvent
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED


def files_in(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.events"))


def events_in(directory: Path) -> list[ExecutionEvent]:
    found: list[ExecutionEvent] = []
    for path in files_in(directory):
        file = SpoolFile(path, os.open(path, os.O_RDONLY), path.stat().st_size)
        while events := file.read(len(found), most_bytes=1 << 20, most_events=1000)[1]:
            found += events
        file.close()
    return found


async def written(directory: Path, wanted: Callable[[Sequence[ExecutionEvent]], bool]) -> None:
    """Until what lies there is as wanted."""
    async with asyncio.timeout(120):
        while not wanted(events_in(directory)):  # noqa: ASYNC110 (files have no event)
            await asyncio.sleep(0.05)


async def emptied(directory: Path) -> None:
    """Until nothing lies there."""
    async with asyncio.timeout(120):
        while files_in(directory):  # noqa: ASYNC110 (files have no event)
            await asyncio.sleep(0.05)


def text_of(events: Sequence[ExecutionEvent]) -> str:
    return "".join(event.message_delta.text for event in events)


def completed(events: Sequence[ExecutionEvent]) -> bool:
    return any(event.phase_changed.phase == EXECUTION_COMPLETED for event in events)
