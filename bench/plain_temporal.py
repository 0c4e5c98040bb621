"""A Temporal as others run it: no worker commands, none of our settings."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from agent_runner.adapters.machine.ports import free_port
from agent_runner.adapters.temporal.managed import find_binary

_READY_WITHIN = 60.0


@contextlib.contextmanager
def plain_temporal(folder: Path) -> Iterator[str]:
    """Temporal's development server with its database in memory; gives its address."""
    port = free_port()
    argv = [find_binary(), "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(port)]
    with (folder / "plain-temporal.log").open("wb") as log:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _READY_WITHIN
        while not _accepts(port):
            if child.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((folder / "plain-temporal.log").read_text())
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
