"""Children that are kept running and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from agent_runner.errors import UnavailableError
from agent_runner.processes import Command, SupervisedProcess

PYTHON = sys.executable


def command(tmp_path: Path, code: str, **changes: object) -> Command:
    log, ready = tmp_path / "log", tmp_path / "ready"

    async def is_ready() -> bool:
        return await asyncio.to_thread(ready.exists)

    prelude = f"import pathlib; pathlib.Path({str(ready)!r}).touch()\n"
    options = {"ready_within": timedelta(seconds=100), **changes}
    return Command("Child", [PYTHON, "-c", prelude + code], log, is_ready, **options)  # type: ignore[arg-type]


async def gone(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        async with asyncio.timeout(120):
            while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_a_child_runs_from_start_to_stop_and_its_output_is_kept(tmp_path: Path) -> None:
    child = SupervisedProcess(command(tmp_path, "print('hello', flush=True)\nimport time; time.sleep(3600)"))
    await child.start()
    pid = child.pid
    assert pid is not None and psutil.pid_exists(pid)
    assert os.getpgid(pid) == pid
    async with asyncio.timeout(120):
        while b"hello" not in (tmp_path / "log").read_bytes():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await child.stop()
    assert child.pid is None
    await gone(pid)
    await child.stop()


async def test_a_child_that_dies_is_started_again(tmp_path: Path) -> None:
    child = SupervisedProcess(command(tmp_path, "import time; time.sleep(3600)"))
    await child.start()
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(120):
        while not child.restarts:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert child.pid not in (None, first)
    await child.stop()


async def test_a_child_that_cannot_start_tells_its_last_words(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    argv = [PYTHON, "-c", "raise SystemExit('the port is taken')"]
    child = SupervisedProcess(Command("Child", argv, tmp_path / "log", never))
    with pytest.raises(UnavailableError, match=r"(?s)ended with code 1.*the port is taken"):
        await child.start()
    assert child.pid is None


async def test_a_child_that_never_serves_is_ended(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    argv = [PYTHON, "-c", "import time; time.sleep(3600)"]
    options = {"ready_within": timedelta(milliseconds=300)}
    child = SupervisedProcess(Command("Child", argv, tmp_path / "log", never, **options))  # type: ignore[arg-type]
    with pytest.raises(UnavailableError, match="did not serve within"):
        await child.start()
    assert child.pid is None


async def test_a_child_that_will_not_stop_is_killed_with_its_children(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)']).pid, flush=True)\n"
        "time.sleep(3600)"
    )
    child = SupervisedProcess(command(tmp_path, code, stop_within=timedelta(milliseconds=300)))
    await child.start()
    async with asyncio.timeout(120):
        while not (tmp_path / "log").read_bytes().strip():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    grandchild = int((tmp_path / "log").read_text())
    async with asyncio.timeout(120):
        await child.stop()
    await gone(grandchild)


async def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import asyncio, pathlib, sys
from agent_runner.processes import Command, SupervisedProcess
async def ready(): return True
async def main():
    argv = [sys.executable, "-c", "import time; time.sleep(3600)"]
    child = SupervisedProcess(Command("Child", argv, pathlib.Path({str(tmp_path / "log")!r}), ready))
    await child.start()
    print(child.pid, flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = await asyncio.create_subprocess_exec(PYTHON, "-c", code, stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    async with asyncio.timeout(120):
        pid = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    await gone(pid)
