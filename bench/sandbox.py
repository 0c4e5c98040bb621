"""What a command and a small file cost in a sandbox, beside a plain shell of the same run."""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from agent_runner.adapters.sandbox.deepagents_backend import SandboxBackend
from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.ports.sandboxes import Sandbox, SandboxProvider, SandboxSpec
from bench.plans import Plan
from bench.rows import Floor, Row, in_ms, most, quantile, row_of

TESTS = Path(__file__).resolve().parents[1] / "tests"
FILE = "x" * 1023 + "\n"


async def commands_and_files(folder: Path, plan: Plan) -> list[Row]:
    """Commands and files of 1 KiB in a local sandbox; commands in a container, where there is an engine."""
    rows = await _within(LocalProvider(folder / "sandboxes"), partial(_local, folder, plan.commands))
    try:
        container = _containers()
    except _NoEngineError as error:
        print(f"a command in a container is not measured: {error}", file=sys.stderr)
        return rows
    return [*rows, *await _within(container, partial(_container, plan.commands // 2))]


async def _within(provider: SandboxProvider, measure: Callable[[Sandbox], Awaitable[list[Row]]]) -> list[Row]:
    try:
        return await measure(await provider.ensure(SandboxSpec(session_id="bench")))
    finally:
        await provider.delete("bench")
        await provider.aclose()


async def _local(folder: Path, runs: int, sandbox: Sandbox) -> list[Row]:
    plain, inside = await _beside_plain(sandbox, runs)
    allowed = 3 * quantile(plain, 0.5) + 15
    files = await _files(SandboxBackend(sandbox), runs)
    bare = await asyncio.to_thread(_bare_files, folder, runs)
    return [
        row_of(
            "a command in a local sandbox", inside, "ms", floors=(_plain_sh(plain),), budget=most(allowed)
        ),
        row_of(
            "write and read 1 KiB, local sandbox",
            files,
            "ms",
            floors=(Floor("in a folder", quantile(bare, 0.5), "ms"),),
            budget=most(5),
        ),
    ]


async def _container(runs: int, sandbox: Sandbox) -> list[Row]:
    plain, inside = await _beside_plain(sandbox, runs)
    return [row_of("a command in a container", inside, "ms", floors=(_plain_sh(plain),))]


def _plain_sh(plain: Sequence[float]) -> Floor:
    return Floor("plain sh", quantile(plain, 0.5), "ms")


async def _beside_plain(sandbox: Sandbox, runs: int) -> tuple[list[float], list[float]]:
    """Milliseconds of `sh -c true` on this host and of `true` in the sandbox, by turns; all but the first."""
    plain, inside = [], []
    for _ in range(runs + 1):
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec("sh", "-c", "true")
        await process.wait()
        plain.append(time.perf_counter() - began)
        began = time.perf_counter()
        result = await sandbox.exec("true")
        inside.append(time.perf_counter() - began)
        if result.code != 0:
            raise RuntimeError(f"`true` ended with {result.code}: {result.stderr.decode(errors='replace')}")
    return in_ms(plain[1:]), in_ms(inside[1:])


async def _files(backend: SandboxBackend, runs: int) -> list[float]:
    """Milliseconds of writing a file by the agent's tool and reading it again."""
    seconds = []
    for number in range(runs):
        path = f"/workspace/{number}.txt"
        began = time.perf_counter()
        written = await backend.awrite(path, FILE)
        read = await backend.aread(path)
        seconds.append(time.perf_counter() - began)
        if written.error or read.error:
            raise RuntimeError(written.error or read.error)
    return in_ms(seconds)


def _bare_files(folder: Path, runs: int) -> list[float]:
    """Milliseconds of the same with nothing around it."""
    seconds = []
    for number in range(runs):
        path = folder / f"{number}.txt"
        began = time.perf_counter()
        path.write_text(FILE)
        path.read_text()
        seconds.append(time.perf_counter() - began)
    return in_ms(seconds)


class _NoEngineError(Exception):
    """No container engine can be started here; the text says why."""


def _containers() -> SandboxProvider:
    """Containers of the engine the tests start: it needs nothing that is not on this machine.

    Raises:
        _NoEngineError: there is none.
    """
    sys.path.insert(0, str(TESTS))
    import pytest

    engine = importlib.import_module("contract.container_engine")

    from agent_runner.adapters.sandbox.docker import DockerProvider

    try:
        url = engine.engine_url()
    except pytest.skip.Exception as error:
        raise _NoEngineError(str(error)) from None
    return DockerProvider(image=engine.IMAGE, url=url, auto_pull=False, extra_ro_paths=["/usr"])
