"""`tool-output` against a real control plane on stores in memory."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import structlog
from unit.cli.conftest import Command
from unit.services.conftest import World
from unit.services.fakes.resources import agent, called, calls, execution
from unit.services.fakes.runners import Runner

from agent_runner.controlplane.server import ControlPlane
from agent_runner.v1.runner_service_pb2 import UploadToolResultHeader

LONG = "x" * 300_000 + "\x1b[31mü\n" + "y" * 1_000_000


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An execution with a long, a short and an open call, in a loop of its own; gives its id."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def do(work: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, loop)
        return future.result(120)

    async def serve() -> tuple[ControlPlane, str]:
        services = World().process()
        server = ControlPlane(services, address="127.0.0.1:0", api_key=None, version="1.2.3")
        monkeypatch.setenv("AGENT_RUNNER_ADDRESS", f"127.0.0.1:{await server.start()}")
        made = await services.executions.create(
            execution(agent_id=(await services.agents.create(agent())).metadata.id)
        )
        runner = Runner(services, made.metadata.id)
        grant = await runner.start()
        data = LONG.encode()
        header = UploadToolResultHeader(
            execution_id=made.metadata.id,
            attempt=grant.attempt,
            token=grant.token,
            tool_call_id="long",
            size_bytes=len(data),
            sha256=hashlib.sha256(data).digest(),
        )
        ended = called("long", "its ends")
        ended.tool_call_completed.artifact_key = await services.results.keep(header, once(data))
        await runner.send(calls("long"), ended, calls("short"), called("short", "few words"), calls("open"))
        return server, made.metadata.id

    server, execution_id = do(serve())
    yield execution_id
    do(server.stop(0))
    loop.call_soon_threadsafe(loop.stop)
    thread.join(120)
    loop.close()
    structlog.reset_defaults()


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def test_a_long_result_comes_whole(offline: Command, running: str, tmp_path: Path) -> None:
    assert offline("tool-output", running, "long").out == LONG
    assert offline("tool-output", running, "short").out == "few words"

    done = offline("tool-output", running, "long", "-o", "log.txt")

    assert done.err == "log.txt has 1.3 MB.\n"
    assert (tmp_path / "log.txt").read_text() == LONG


def test_a_terminal_obeys_nothing_of_it(
    offline: Command, running: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)

    assert offline("tool-output", running, "long").out == LONG.replace("\x1b[31m", "") + "\n"


def test_without_a_call_all_are_listed(offline: Command, running: str) -> None:
    lines = [line.split() for line in offline("tool-output", running).out.splitlines()]

    assert lines == [
        ["CALL", "TOOL", "SIZE"],
        ["long", "execute", "long"],
        ["short", "execute", "9", "B"],
        ["open", "execute", "0", "B"],
    ]


def test_what_cannot_be_had_is_told_and_leaves_no_file(
    offline: Command, running: str, tmp_path: Path
) -> None:
    for call, code, words in (("no such", 5, "was not found"), ("open", 6, "has not ended")):
        done = offline("tool-output", running, call, "-o", "log.txt")
        assert (done.code, done.out) == (code, "")
        assert words in done.err
    assert not list(tmp_path.glob("*log.txt*"))
