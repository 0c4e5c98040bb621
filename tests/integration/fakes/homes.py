"""A home with the whole stack in it, as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Home:
    """Where a user works.

    Attributes:
        data: the stack's data directory.
    """

    data: Path
    env: dict[str, str]

    @property
    def address(self) -> str:
        return str(json.loads((self.data / "stack.json").read_text())["address"])

    def run(self, *arguments: str, code: int = 0) -> str:
        """A command that must end with the exit code; gives what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "agent_runner", *arguments],
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def script(self, name: str, steps: list[Any]) -> str:
        """The name of a model that says the steps."""
        path = self.data.parent / f"{name}.yaml"
        path.write_text(json.dumps({"turns": [{"steps": steps}]}))
        return f"script:{path}"


@contextmanager
def home_with_stack(directory: Path, **settings: str) -> Iterator[Home]:
    """A stack that runs; `settings` are further variables of it and of every command."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT / "src"),
        "AGENT_RUNNER_DATA_DIR": str(directory / "data"),
        "AGENT_RUNNER_LOG_LEVEL": "debug",
        **settings,
    }
    home = Home(directory / "data", env)
    home.run("up", "--detach", "--port", "0")
    try:
        yield home
    finally:
        home.run("down")
