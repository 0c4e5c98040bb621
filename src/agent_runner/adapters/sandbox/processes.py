"""Running one command of the host's: output bounded and live, and never a process left over."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from agent_runner.adapters.sandbox.output import BoundedOutput, LiveOutput, LiveStream
from agent_runner.ports.sandboxes import OnOutput

TIMED_OUT = 124
"""Exit code after a timeout, as coreutils' `timeout` has it."""

_SETTLE = 5.0
"""Seconds to wait for a killed process's pipes to close."""

_READ_SIZE = 1 << 16


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of a process; shaped like `ExecResult`, which the caller makes of it."""

    code: int
    stdout: bytes
    stderr: bytes
    timed_out: bool
    truncated: bool


async def run_process(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    timeout: timedelta,
    output_limit: int,
    on_output: OnOutput | None = None,
    cwd: str | None = None,
    pass_fds: Sequence[int] = (),
) -> Finished:
    """Run a program in a session and process group of its own, with nothing on standard input.

    A timeout or cancellation kills the group. Must be called on a thread which outlives the
    process: the death signal of `bwrap --die-with-parent` follows the thread that made it.

    Raises:
        OSError: the program could not be started.
    """
    process = await _start(argv, env, cwd, pass_fds)
    live = LiveOutput(on_output, output_limit)
    stdout, stderr = BoundedOutput(output_limit), BoundedOutput(output_limit)
    ended = asyncio.gather(
        _pump(process.stdout, stdout, live.stream()),
        _pump(process.stderr, stderr, live.stream()),
        process.wait(),
    )
    timed_out = False
    try:
        await asyncio.wait_for(asyncio.shield(ended), timeout.total_seconds())
    except TimeoutError:
        timed_out = True
    finally:
        if not ended.done():
            await _kill(process.pid)
            await _settle(ended)
    code = TIMED_OUT if timed_out else _exit_code(process.returncode)
    truncated = stdout.truncated or stderr.truncated
    return Finished(code, stdout.value(), stderr.value(), timed_out, truncated)


async def _start(
    argv: Sequence[str], env: Mapping[str, str], cwd: str | None, pass_fds: Sequence[int]
) -> asyncio.subprocess.Process:
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(env),
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            limit=_READ_SIZE * 4,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # Cancelled itself, it would kill the one process it knows of, and none of its children.
        await asyncio.wait([starting])
        if not starting.cancelled() and starting.exception() is None:
            process = starting.result()
            await _kill(process.pid)
            with suppress(TimeoutError):
                await asyncio.wait_for(process.communicate(), _SETTLE)
        raise


async def _pump(reader: asyncio.StreamReader | None, kept: BoundedOutput, live: LiveStream) -> None:
    assert reader is not None
    while data := await reader.read(_READ_SIZE):
        kept.add(data)
        live.add(data)
    live.close()


async def _settle(ended: asyncio.Future[tuple[None, None, int]]) -> None:
    """Let killed processes' pipes run dry, also when the caller is being cancelled."""
    # A pipe held open by somebody outside the group must not hold us: hence the deadline.
    with suppress(TimeoutError):
        await asyncio.wait_for(ended, _SETTLE)


async def _kill(pid: int) -> None:
    """Kill a process group and the children of its leader, which may have left the group.

    Bubblewrap's child does, and does not die with it before it has set the sandbox up: a command killed as
    it begins would begin all the same, with nobody there to end it.
    """
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGSTOP)  # or it might have another child meanwhile
        children: list[int] = []
        try:
            children = await asyncio.to_thread(_children, pid)
        finally:
            os.killpg(pid, signal.SIGKILL)
        for child in children:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    """Children of a process with one thread; none where the kernel does not tell."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _exit_code(returncode: int | None) -> int:
    """The shell's form of an exit code: 128 + N for signal N."""
    if returncode is None:
        return 128 + signal.SIGKILL
    return returncode if returncode >= 0 else 128 - returncode
