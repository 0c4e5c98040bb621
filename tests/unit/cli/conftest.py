from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from unit.client.small_server import SmallServer

from agent_runner.cli import _main


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home of its own, and none of the variables of whoever runs the tests."""
    import os

    for name in list(os.environ):
        if name.startswith(("AGENT_RUNNER_", "STIGMER_")) or name in ("NO_COLOR", "FORCE_COLOR", "CI"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server() -> Iterator[SmallServer]:
    """A small server in a thread and a loop of its own, since each command runs a loop."""
    loop, server = asyncio.new_event_loop(), SmallServer()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(120)
    server.loop = loop
    yield server
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(120)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(120)
    loop.close()


@dataclass
class Result:
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def offline(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command as the shell would, but in this process."""

    def run(*arguments: str) -> Result:
        code = _main.run(list(arguments))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def command(offline: Command, server: SmallServer, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The same with a server there."""
    monkeypatch.setenv("AGENT_RUNNER_ADDRESS", server.address)
    return offline
