"""A pseudo-terminal with the program on it, keys pressed and text read."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

WITHIN = 300.0


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *arguments: str, environment: dict[str, str], directory: Path | None = None) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            # Ctrl-C on a terminal reaches the group that has it. No function of ours runs between fork and
            # exec, where it could wait for ever for what a thread of this process held.
            ["setsid", "--ctty", sys.executable, "-m", "agent_runner", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            cwd=directory,
        )
        os.close(slave)
        self.text = ""

    def press_ctrl_c(self) -> None:
        self.type("\x03")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read_until(self, pattern: str) -> str:
        """Everything shown, once the pattern is in it."""
        deadline = time.monotonic() + WITHIN
        while not re.search(pattern, self.text, re.DOTALL):
            if time.monotonic() > deadline or not self._read(deadline):
                raise AssertionError(f"{pattern!r} did not come: {self.text!r}")
        return self.text

    def wait(self) -> int:
        deadline = time.monotonic() + WITHIN
        while self._read(deadline):
            pass
        return self.process.wait(WITHIN)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            raise AssertionError(f"nothing more came: {self.text!r}")
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other end is closed
            return False
        self.text += data.decode("utf-8", "replace")
        return bool(data)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(WITHIN)
        os.close(self._master)
