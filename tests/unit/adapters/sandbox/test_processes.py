"""Running one command of the host's."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from agent_runner.adapters.sandbox.processes import run_process

# As bubblewrap just after it has begun: the child is in a session of its own and outlives its parent.
LEAVES = """
import os, time
if not os.fork():
    os.setsid()
    print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_a_child_that_has_left_the_group_is_killed_with_it() -> None:
    begun: asyncio.Queue[str] = asyncio.Queue()
    running = asyncio.create_task(
        run_process(
            [sys.executable, "-c", LEAVES],
            env={},
            timeout=timedelta(seconds=60),
            output_limit=1000,
            on_output=begun.put_nowait,
        )
    )
    async with asyncio.timeout(120):
        child = int(await begun.get())
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        while await asyncio.to_thread(_lives, child):  # noqa: ASYNC110 (the kernel is asked)
            await asyncio.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
