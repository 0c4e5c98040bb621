"""Child processes that are kept running and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

import structlog

from agent_runner.errors import UnavailableError

log = structlog.get_logger(__name__)

_KEEP_LOG_BYTES = 10 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
# Asks the kernel to kill the child when the thread that made it ends, then becomes the command. A
# program of its own rather than `preexec_fn`, which is not safe in a process with threads of gRPC in it.
_GUARD = (
    "import ctypes,os,sys\n"
    "ctypes.CDLL(None).prctl(1,int(sys.argv[1]))\n"
    "os.getppid()==int(sys.argv[2]) or os._exit(1)\n"
    "os.execvp(sys.argv[3],sys.argv[3:])\n"
)


@dataclass(frozen=True, slots=True)
class Command:
    """How to run a child.

    Attributes:
        name: for logs and errors.
        argv: program and arguments.
        log_path: where its output goes; appended to, moved to `NAME.1` when it has grown over 10 MiB.
        ready: answers whether it serves yet; asked again until it says so.
        ready_within: how long that may take.
        stop_within: how long it may take to end after SIGTERM, before SIGKILL.
        env: its whole environment; None for ours.
    """

    name: str
    argv: Sequence[str]
    log_path: Path
    ready: Callable[[], Awaitable[bool]]
    ready_within: timedelta = timedelta(seconds=20)
    stop_within: timedelta = timedelta(seconds=5)
    env: Mapping[str, str] | None = field(default=None, repr=False)


class SupervisedProcess:
    """One child in a process group of its own, started again when it ends by itself.

    The kernel kills the child when this process, or the thread that called `start`, ends in whatever way.
    """

    def __init__(self, command: Command) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """Its process id; None while it does not run."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Run it and wait until it serves.

        Raises:
            UnavailableError: it ended, or did not serve in time; its last lines are in the message.
        """
        await self._spawn()
        try:
            await self._wait_ready()
        except BaseException:
            await self._end()
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name=f"supervise {self._command.name}")

    async def stop(self) -> None:
        """End it and its children: SIGTERM, then SIGKILL. Does nothing when it does not run."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        await self._end()

    async def _spawn(self) -> None:
        command = self._command
        guard = [sys.executable, "-I", "-S", "-c", _GUARD, str(int(signal.SIGKILL)), str(os.getpid())]
        with await asyncio.to_thread(_log_file, command.log_path) as output:
            self._process = await asyncio.create_subprocess_exec(
                *guard,
                *command.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=None if command.env is None else dict(command.env),
                start_new_session=True,
            )

    async def _wait_ready(self) -> None:
        process, command = self._process, self._command
        assert process is not None
        try:
            async with asyncio.timeout(command.ready_within.total_seconds()):
                while process.returncode is None:
                    if await command.ready():
                        return
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise UnavailableError(
                f"{command.name} did not serve within {command.ready_within.total_seconds():.0f} s. "
                f"Its log is {command.log_path}.{await asyncio.to_thread(_last_lines, command.log_path)}"
            ) from None
        raise UnavailableError(
            f"{command.name} ended with code {process.returncode}. "
            f"Its log is {command.log_path}.{await asyncio.to_thread(_last_lines, command.log_path)}"
        )

    async def _supervise(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            assert self._process is not None
            code = await self._process.wait()
            log.warning("process ended, starting it again", process=self._command.name, code=code)
            await self._end()
            await asyncio.sleep(pause)
            try:
                await self._spawn()
                await self._wait_ready()
            except (UnavailableError, OSError) as error:
                log.error("process did not start", process=self._command.name, error=str(error))
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            self.restarts += 1
            pause = _FIRST_PAUSE

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        with contextlib.suppress(TimeoutError):
            _signal_group(process.pid, signal.SIGTERM)
            async with asyncio.timeout(self._command.stop_within.total_seconds()):
                await process.wait()
        # Also when it ended by itself: its children may have stayed.
        _signal_group(process.pid, signal.SIGKILL)
        await process.wait()


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _log_file(path: Path) -> BinaryIO:
    """Opened to be added to; what has grown too long is put aside first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > _KEEP_LOG_BYTES:
        path.replace(path.with_name(path.name + ".1"))
    return path.open("ab")


def _last_lines(path: Path, count: int = 5) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").strip().splitlines()[-count:]
        return "".join(f"\n  {line}" for line in lines)
    return ""
