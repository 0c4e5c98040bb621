"""The stack of this machine: whether it runs, starting it in the background, stopping it.

The process of `up` writes `stack.json` in the data directory when it is ready and removes it at its
end; it holds `stack.lock` as long as it lives.
"""

from __future__ import annotations

import contextlib
import fcntl
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
from typing import IO

from agent_runner.cli._errors import CONFLICT, UNREACHABLE, USAGE, CommandError
from agent_runner.errors import SettingsError

READY_WITHIN = timedelta(seconds=60)
STOP_WITHIN = timedelta(seconds=10)
_POLL = 0.02
_SAME = {USAGE: ("INVALID_ARGUMENT", USAGE), CONFLICT: ("FAILED_PRECONDITION", CONFLICT)}


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

    def __init__(
        self, process: subprocess.Popen[bytes], data_dir: Path, log: Path, log_start: int, *, temporary: bool
    ) -> None:
        self._temporary = temporary
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
            if state is not None and state.pid == self._process.pid and self._is_marked(state):
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

    def _is_marked(self, state: StackState) -> bool:
        return not self._temporary or Stack(self._data_dir, state).temporary

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
        # A wrong setting or a directory in use is as wrong as in the foreground.
        code, exit_code = _SAME.get(self._process.returncode or 0, ("UNAVAILABLE", UNREACHABLE))
        return CommandError(
            message,
            code=code,
            exit_code=exit_code,
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
    _make_private(data_dir)
    command = [
        sys.executable,
        "-m",
        "agent_runner",
        "up",
        "--color=never",  # what goes wrong is looked for in the log
        *(["--temporary"] if temporary else []),
        *arguments,
    ]
    environment = {**os.environ, "AGENT_RUNNER_DATA_DIR": str(data_dir)}
    environment.setdefault("PYTHONUNBUFFERED", "1")
    with _writing(data_dir):
        log.parent.mkdir(exist_ok=True, mode=0o700)
        output = log.open("ab")
    with output:
        start = output.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if temporary else subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return Starting(process, data_dir, log, start, temporary=temporary)


class Stack:
    """The stack a command works with.

    Args:
        users: the file whose lock says that this command uses it; None for one that only looks.
    """

    def __init__(self, data_dir: Path, state: StackState, users: IO[str] | None = None) -> None:
        self.state = state
        self._data_dir = data_dir
        self._users = users

    @property
    def temporary(self) -> bool:
        """Whether it was started for a command alone and ends with the last one that uses it."""
        return _read_pid(_temporary_path(self._data_dir)) == self.state.pid

    @property
    def ends_with_us(self) -> bool:
        """Whether it is temporary and no other command uses it; who comes from now on waits for our end."""
        return self.temporary and self._users is not None and _is_last_user(self._users)

    def keep(self) -> None:
        """Let a temporary one run on without users."""
        _temporary_path(self._data_dir).unlink(missing_ok=True)


@contextlib.contextmanager
def ensure_running(data_dir: Path, say: Callable[[str], None]) -> Iterator[Stack]:
    """The stack that runs here, or a temporary one until its last user leaves the context."""
    with _using(data_dir) as users:
        state = running(data_dir)
        if state is None:
            say("Starting a stack for this run; `agent-runner up` keeps one running.")
            state = _start_temporary(data_dir)
        try:
            yield Stack(data_dir, state, users)
        finally:
            _stop_after_last_user(data_dir, users)


def _start_temporary(data_dir: Path) -> StackState:
    starting = spawn(data_dir, ["--quiet"], temporary=True)
    try:
        return starting.wait()
    except CommandError:
        # Another command may have been quicker.
        other = wait_for_other(data_dir)
        if other is None:
            raise
        return other
    except BaseException:
        starting.stop()
        raise


def wait_for_other(data_dir: Path, within: timedelta = READY_WITHIN) -> StackState | None:
    """The stack another process is starting here, once it is ready; None when nobody holds the directory."""
    deadline = time.monotonic() + within.total_seconds()
    while time.monotonic() < deadline:
        if (state := running(data_dir)) is not None:
            return state
        if not _held(data_dir / "stack.lock"):
            return None
        time.sleep(_POLL)
    return None


def _held(path: Path) -> bool:
    try:
        with path.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def _using(data_dir: Path) -> Iterator[IO[str]]:
    """Say that a command uses the stack; waits while one is being stopped."""
    _make_private(data_dir)
    with _writing(data_dir):
        users = (data_dir / "stack.users").open("a")
    with users:
        fcntl.flock(users, fcntl.LOCK_SH)
        yield users


def _stop_after_last_user(data_dir: Path, users: IO[str]) -> None:
    """Stop a temporary stack unless somebody else uses it; who comes meanwhile waits, then starts anew."""
    if not _is_last_user(users):
        return
    state = running(data_dir)
    if state is not None and Stack(data_dir, state).temporary:
        stop_process(state.pid, wait=gone(state.pid))
        forget(data_dir)


def _is_last_user(users: IO[str]) -> bool:
    """Takes the lock for this command alone; where others hold it, this one's part of it is given up."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_private(data_dir: Path) -> None:
    with _writing(data_dir):
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextlib.contextmanager
def _writing(data_dir: Path) -> Iterator[None]:
    """Say it in words when the directory cannot be written to."""
    try:
        yield
    except OSError as error:
        why = "It is a file" if data_dir.is_file() else error.strerror
        raise SettingsError(
            f"AGENT_RUNNER_DATA_DIR={data_dir} cannot be written to: {why}. Choose a directory of your own."
        ) from error


def _temporary_path(data_dir: Path) -> Path:
    return data_dir / "stack.temporary"


def _read_pid(path: Path) -> int:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


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
    """Remove what a stack left behind."""
    for path in (state_path(data_dir), _temporary_path(data_dir)):
        path.unlink(missing_ok=True)


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


def end_with_parent(data_dir: Path, stop: Callable[[], object]) -> Callable[[], None]:
    """For a temporary stack: `stop` when who started it has gone without doing so, and nobody uses it.

    Returns:
        What to call when the stack is ready: it marks it as temporary.
    """
    import threading

    ready = threading.Event()

    def watch() -> None:
        while os.read(0, 4096):
            pass  # stdin ends with the process that holds its other end
        with (data_dir / "stack.users").open("a") as users:
            fcntl.flock(users, fcntl.LOCK_EX)
            if not ready.is_set() or _read_pid(_temporary_path(data_dir)) == os.getpid():
                stop()
                threading.Event().wait()  # holding the lock, so that who comes now waits for the end

    def on_ready() -> None:
        _temporary_path(data_dir).write_text(str(os.getpid()), encoding="utf-8")
        ready.set()

    threading.Thread(target=watch, name="parent", daemon=True).start()
    return on_ready
