"""The data directory: made private, held by one stack at a time, and where its parts lie."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent_runner.errors import FailedPreconditionError, SettingsError


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """Paths below `AGENT_RUNNER_DATA_DIR`."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "control-plane.db"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints.db"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def sandboxes(self) -> Path:
        return self.root / "sandboxes"

    @property
    def skills(self) -> Path:
        return self.root / "skills"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def outbox(self) -> Path:
        return self.root / "outbox"

    @property
    def temporal(self) -> Path:
        return self.root / "temporal"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def state(self) -> Path:
        return self.root / "stack.json"

    @property
    def lock(self) -> Path:
        return self.root / "stack.lock"

    def prepare(self) -> None:
        """Make the directory with mode 0700, and the ones in it.

        Raises:
            SettingsError: it cannot be made or written to.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            # mkdir leaves an existing directory's mode alone, and the umask takes from a new one's.
            self.root.chmod(0o700)
            for directory in (self.artifacts, self.sandboxes, self.skills, self.temporal, self.logs):
                directory.mkdir(mode=0o700, exist_ok=True)
            probe = self.root / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            why = "It is a file" if self.root.is_file() else error.strerror
            raise SettingsError(
                f"AGENT_RUNNER_DATA_DIR={self.root} cannot be written to: {why}. "
                "Choose a directory of your own."
            ) from error


@dataclass(frozen=True, slots=True)
class StackState:
    """What a running stack tells others, as `stack.json`."""

    pid: int
    address: str
    web: str
    temporal: str
    started_at: str
    version: str

    def write(self, path: Path) -> None:
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(asdict(self)), encoding="utf-8")
        scratch.replace(path)


def read_state(path: Path) -> dict[str, Any] | None:
    """The state file's content; None when there is none that can be read."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


@contextlib.contextmanager
def held(data: DataDirectory) -> Iterator[None]:
    """Hold the data directory for this process.

    The lock is the kernel's and goes with the process, however it ends.

    Raises:
        FailedPreconditionError: another process holds it.
    """
    with data.lock.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            state = read_state(data.state)
            if not state:  # of `agent-runner server`, or not ready yet
                raise FailedPreconditionError(
                    f"A control plane runs already in {data.root}. Use it, end its process, or choose "
                    "another AGENT_RUNNER_DATA_DIR."
                ) from None
            raise FailedPreconditionError(
                f"A stack runs already in {data.root} (process {state.get('pid')}, {state.get('address')}). "
                "Use it, stop it with `agent-runner down`, or choose another AGENT_RUNNER_DATA_DIR."
            ) from None
        try:
            yield
        finally:
            data.state.unlink(missing_ok=True)
