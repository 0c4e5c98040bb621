"""What a command and a small file cost in a sandbox, beside a plain shell of the same run."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent_runner.adapters.sandbox.deepagents_backend import SandboxBackend
from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.ports.sandboxes import Sandbox, SandboxProvider, SandboxSpec
from bench.measures import Plan, Row, milliseconds, spread

TESTS = Path(__file__).resolve().parents[1] / "tests"
RUNS = 40
CONTAINER_RUNS = 15
FILE = "x" * 1023 + "\n"


async def commands_and_files(folder: Path, _: Plan) -> list[Row]:
    """Commands and files of 1 KiB in a local sandbox; commands in a container, where there is an engine."""
    local = LocalProvider(folder / "sandboxes")
    rows = await _within(local, _local)
    try:
        container = _containers()
    except _NoEngineError as error:
        return [*rows, Row("a command in a container", "not measured", floor=str(error))]
    return [*rows, *await _within(container, _container)]


async def _within(provider: SandboxProvider, measure: Callable[[Sandbox], Awaitable[list[Row]]]) -> list[Row]:
    try:
        return await measure(await provider.ensure(SandboxSpec(session_id="bench")))
    finally:
        await provider.delete("bench")
        await provider.aclose()


async def _local(sandbox: Sandbox) -> list[Row]:
    plain, inside = await _beside_plain(sandbox, RUNS)
    allowed = 3 * statistics.median(plain) + 0.015
    files = await _files(SandboxBackend(sandbox))
    return [
        Row(
            "a command in a local sandbox",
            milliseconds(inside),
            spread(inside),
            f"plain sh {milliseconds(plain)}",
            f"<= {allowed * 1e3:.1f} ms",
            statistics.median(inside) <= allowed,
        ),
        Row(
            "write and read 1 KiB, local",
            milliseconds(files),
            spread(files),
            budget="<= 5 ms",
            holds=statistics.median(files) <= 0.005,
        ),
    ]


async def _container(sandbox: Sandbox) -> list[Row]:
    plain, inside = await _beside_plain(sandbox, CONTAINER_RUNS)
    added = statistics.median(inside) - statistics.median(plain)
    return [
        Row(
            "a command in a container, added",
            milliseconds([added]),
            spread(inside),
            f"plain sh {milliseconds(plain)}",
        )
    ]


async def _beside_plain(sandbox: Sandbox, runs: int) -> tuple[list[float], list[float]]:
    """Seconds of `sh -c true` on this host and of `true` in the sandbox, by turns; all but the first."""
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
    return plain[1:], inside[1:]


async def _files(backend: SandboxBackend) -> list[float]:
    """Seconds of writing a file by the agent's tool and reading it again."""
    seconds = []
    for number in range(RUNS):
        path = f"/workspace/{number}.txt"
        began = time.perf_counter()
        written = await backend.awrite(path, FILE)
        read = await backend.aread(path)
        seconds.append(time.perf_counter() - began)
        if written.error or read.error:
            raise RuntimeError(written.error or read.error)
    return seconds


class _NoEngineError(Exception):
    """No container engine can be started here; the text says why."""


def _containers() -> SandboxProvider:
    """Containers of the engine the tests start: it needs nothing that is not on this machine.

    Raises:
        _NoEngineError: there is none.
    """
    sys.path.insert(0, str(TESTS))
    import pytest
    from contract.container_engine import IMAGE, engine_url

    from agent_runner.adapters.sandbox.docker import DockerProvider

    try:
        url = engine_url()
    except pytest.skip.Exception as error:
        raise _NoEngineError(str(error)) from None
    return DockerProvider(image=IMAGE, url=url, auto_pull=False, extra_ro_paths=["/usr"])
