"""The detector of what blocks the event loop bites, and only where it should."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from blockbuster import BlockingError
from blocking import OURS, Detector


def ours(source: str, **names: Any) -> Callable[..., Awaitable[Any]]:
    """The function `probe` of a module that stands among ours."""
    exec(compile(source, f"{OURS}services/made_up.py", "exec"), names)
    return names["probe"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("call", "statement"),
    [
        ("time.sleep", "time.sleep(0)"),
        ("io.open", "Path('/proc/self/stat').read_text()"),
        ("builtins.open", "open('/proc/self/stat').close()"),
        ("os.stat", "Path('/').stat()"),
        ("apsw.Connection.execute", "apsw.Connection(':memory:').execute('select 1')"),
        ("threading.Lock.acquire", "lock.acquire(timeout=0.001)"),
    ],
)
async def test_what_ours_does_on_the_loop_raises_and_is_kept(
    blocking_detector: Detector, call: str, statement: str
) -> None:
    lock = threading.Lock()
    lock.acquire()
    probe = ours(f"async def probe():\n    {statement}", time=time, Path=Path, apsw=apsw, lock=lock)
    with pytest.raises(BlockingError):
        await probe()
    found = [finding.call for finding in blocking_detector.take()]
    assert call in found


async def test_a_swallowed_error_and_a_callback_are_found_too(blocking_detector: Detector) -> None:
    probe = ours(
        "def nap():\n"
        "    try:\n"
        "        time.sleep(0)\n"
        "    except Exception:\n"
        "        done.set()\n"
        "async def probe():\n"
        "    asyncio.get_running_loop().call_soon(nap)\n"
        "    await done.wait()\n",
        time=time,
        asyncio=asyncio,
        done=asyncio.Event(),
    )
    await probe()
    assert [finding.call for finding in blocking_detector.take()] == ["time.sleep"]


async def test_a_thread_may_block_and_so_may_a_test(blocking_detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    probe = ours("async def probe():\n    await asyncio.to_thread(time.sleep, 0)", asyncio=asyncio, time=time)
    await probe()
    nap = ours("def probe():\n    time.sleep(0)", time=time)
    nap()  # a plain function, called by a test
    assert not blocking_detector.take()
