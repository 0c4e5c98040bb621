"""The stack of this machine: whether it runs, starting it in the background, stopping it.

The process of `up` writes `stack.json` in the data directory when it is ready and removes it at its
end; it holds `stack.lock` as long as it lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from agent_runner.cli._errors import UNREACHABLE, CommandError

READY_WITHIN = timedelta(seconds=60)
STOP_WITHIN = timedelta(seconds=10)
_POLL = 0.02
KEEP = b"k"
"""What a temporary stack reads from stdin to stay; the end of stdin alone makes it stop."""


@dataclass(frozen=True, slots=True)
class StackState:
    """What `stack.json` says.

    Attributes:
        address: `host:port` of the control plane.
        web: URL of the web port; empty without one.
        temporal: `host:port` of Temporal.
        started_at: RFC 3339.
    """

    pid: int
    address: str
    web: str = ""
    temporal: str = ""
    started_at: str = ""


def state_path(data_dir: Path) -> Path:
    return data_dir / "stack.json"


def log_path(data_dir: Path) -> Path:
    return data_dir / "logs" / "stack.log"


def running(data_dir: Path) -> StackState | None:
    """The stack that runs here now; None when there is none, or its process is gone."""
    try:
        values = json.loads(state_path(data_dir).read_text(encoding="utf-8"))
        state = StackState(**{name: values[name] for name in StackState.__slots__ if name in values})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return state if _is_stack(state.pid) else None


def _is_stack(pid: int) -> bool:
    """Whether the process lives and is one of ours, for its number may be in use again."""
    try:
        os.kill(pid, 0)
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except ProcessLookupError:
        return False
    except OSError:
        return True  # not ours to signal, or no /proc: then the number has to be enough
    return b"agent_runner" in command or b"agent-runner" in command


class Starting:
    """A stack that was started in the background and is not known to be ready yet."""

    def __init__(self, process: subprocess.Popen[bytes], data_dir: Path, log: Path, log_start: int) -> None:
        self._process = process
        self._data_dir = data_dir
        self._log = log
        self._log_start = log_start

    def wait(
        self, within: timedelta = READY_WITHIN, on_tick: Callable[[], None] = lambda: None
    ) -> StackState:
        """Return when it is ready.

        Raises:
            CommandError: it ended first, with the end of its log, or took too long and was stopped.
        """
        deadline = time.monotonic() + within.total_seconds()
        while time.monotonic() < deadline:
            state = running(self._data_dir)
            if state is not None and state.pid == self._process.pid:
                return state
            if self._process.poll() is not None:
                raise self._failed(f"The stack did not start (exit code {self._process.returncode}).")
            on_tick()
            time.sleep(_POLL)
        self.stop()
        raise self._failed(f"The stack was not ready after {within.total_seconds():.0f} s and was stopped.")

    def stop(self) -> None:
        """End it, by force when it does not listen."""
        stop_process(self._process.pid, wait=self._wait)

    def keep(self) -> None:
        """A temporary one stays from now on."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(KEEP)
                self._process.stdin.close()
            self._process.stdin = None

    def _wait(self, within: timedelta) -> bool:
        try:
            self._process.wait(within.total_seconds())
        except subprocess.TimeoutExpired:
            return False
        return True

    def _failed(self, message: str) -> CommandError:
        lines = self._own_log_lines()
        problem = next((line for line in reversed(lines) if line.startswith("Error:")), None)
        at = lines.index(problem) if problem else max(len(lines) - 8, 0)
        return CommandError(
            message,
            code="UNAVAILABLE",
            exit_code=UNREACHABLE,
            lines=lines[at:][:12],
            hint="agent-runner doctor",
        )

    def _own_log_lines(self) -> list[str]:
        with contextlib.suppress(OSError), self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode("utf-8", "replace").splitlines()
        return []


def spawn(data_dir: Path, arguments: Sequence[str], *, temporary: bool = False) -> Starting:
    """Start `agent-runner up` in a session of its own, its output in the log."""
    log = log_path(data_dir)
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = [
        sys.executable,
        "-m",
        "agent_runner",
        "up",
        *(["--temporary"] if temporary else []),
        *arguments,
    ]
    environment = {**os.environ, "AGENT_RUNNER_DATA_DIR": str(data_dir)}
    environment.setdefault("PYTHONUNBUFFERED", "1")
    with log.open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if temporary else subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return Starting(process, data_dir, log, start)


class Stack:
    """The stack a command works with.

    Attributes:
        temporary: it was started for this command alone and ends with it, unless it is kept.
    """

    def __init__(self, state: StackState, starting: Starting | None = None) -> None:
        self.state = state
        self.temporary = starting is not None
        self._starting = starting

    def keep(self) -> None:
        """Let a temporary one run on."""
        if self._starting is not None:
            self._starting.keep()
            self._starting, self.temporary = None, False

    def stop_if_temporary(self) -> None:
        if self._starting is not None:
            self._starting.stop()


@contextlib.contextmanager
def ensure_running(data_dir: Path, say: Callable[[str], None]) -> Iterator[Stack]:
    """The stack that runs here, or a temporary one until the context is left."""
    state = running(data_dir)
    if state is not None:
        yield Stack(state)
        return
    say("Starting a stack for this run; `agent-runner up` keeps one running.")
    starting = spawn(data_dir, ["--quiet"], temporary=True)
    try:
        stack = Stack(starting.wait(), starting)
    except CommandError:
        # Another command may have been quicker: the directory is held by one stack at a time.
        if (state := running(data_dir)) is None:
            raise
        yield Stack(state)
        return
    except BaseException:
        starting.stop()
        raise
    try:
        yield stack
    finally:
        stack.stop_if_temporary()


def stop_process(pid: int, *, wait: Callable[[timedelta], bool], within: timedelta = STOP_WITHIN) -> bool:
    """SIGTERM, then SIGKILL of its group; returns whether force was needed."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    if wait(within):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL) if _leads_its_group(pid) else os.kill(pid, signal.SIGKILL)
    wait(timedelta(seconds=2))
    return True


def _leads_its_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def gone(pid: int) -> Callable[[timedelta], bool]:
    """A wait for the end of a process that is not our child."""

    def wait(within: timedelta) -> bool:
        deadline = time.monotonic() + within.total_seconds()
        while time.monotonic() < deadline:
            if not _is_stack(pid) or _is_zombie(pid):
                return True
            time.sleep(_POLL)
        return not _is_stack(pid)

    return wait


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][:1] == "Z"
    except OSError:
        return False


def forget(data_dir: Path) -> None:
    """Remove the state a killed stack left behind."""
    state_path(data_dir).unlink(missing_ok=True)


def follow(path: Path, *, tail: int, keep_on: bool) -> Iterator[str]:
    """The last `tail` lines of a file, then new ones while `keep_on`, also after it was replaced."""
    with path.open(encoding="utf-8", errors="replace") as log:
        yield from _last_lines(log, tail)
        while keep_on:
            line = log.readline()
            if line:
                yield line
            else:
                if log.tell() > path.stat().st_size:
                    log.seek(0)
                time.sleep(0.1)


def _last_lines(log: IO[str], tail: int) -> Sequence[str]:
    from collections import deque

    return deque(log, maxlen=tail) if tail >= 0 else list(log)


def stop_when_stdin_ends(stop: Callable[[], Any]) -> None:
    """For a temporary stack: `stop` when whoever started it is gone, unless it said to stay first."""
    import threading

    def watch() -> None:
        if os.read(0, 1) != KEEP:
            stop()

    threading.Thread(target=watch, name="parent", daemon=True).start()
