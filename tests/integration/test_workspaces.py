"""Files of sessions, in and out: real Temporal, gRPC, sandbox and worker."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from integration.fakes.runner_stack import Stack, parts, stack

from agent_runner.client import AgentRunner
from agent_runner.controlplane.server import ControlPlane
from agent_runner.errors import InvalidRequestError, NotFoundError, UnavailableError
from agent_runner.runner.worker import RunnerWorker
from agent_runner.services.workspaces import WorkspaceService
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED

PREPARE = r"""
turns:
  - steps:
      - text: Preparing.
        calls:
          - name: execute
            args:
              command: |
                mkdir -p sub && echo hello > sub/a.txt && printf '\000\377binary' > 'odd
                name.bin' && ln -s /etc/passwd planted && ln -s ../.. up && : > empty && mkfifo pipe
      - "Done."
  - steps:
      - text: Looking.
        calls: [{name: execute, args: {command: "sha256sum /workspace/given/big.bin | cut -c1-12"}}]
      - "Seen."
"""


@dataclass
class World:
    stack: Stack
    client: AgentRunner
    address: str
    session_id: str = ""
    workers: list[RunnerWorker] = field(default_factory=list)

    @property
    def service(self) -> WorkspaceService:
        return self.stack.server.services.workspaces

    async def run_worker(self, held: AsyncExitStack) -> RunnerWorker:
        made = await held.enter_async_context(parts(self.address, self.stack.directory))
        worker = RunnerWorker(self.stack.client, made)
        await held.enter_async_context(worker)
        return worker

    async def pending(self) -> list[str]:
        query = "WorkflowType = 'agent-runner/session/files' AND ExecutionStatus = 'Running'"
        return [found.id async for found in self.stack.client.list_workflows(query)]


@pytest.fixture
async def idle(tmp_path: Path) -> AsyncIterator[World]:
    """A control plane without a runner."""
    async with stack(tmp_path) as made:
        api = ControlPlane(made.server.services, address="127.0.0.1:0", api_key=None, version="test")
        address = f"127.0.0.1:{await api.start()}"
        try:
            async with AgentRunner(address) as client:
                yield World(made, client, address)
        finally:
            await api.stop(0)


@pytest.fixture
async def world(idle: World) -> AsyncIterator[World]:
    """A runner, and a session whose agent has left files."""
    async with AsyncExitStack() as held:
        idle.workers.append(await idle.run_worker(held))
        agent = await idle.stack.agent(PREPARE)
        ended = await idle.stack.ended(await idle.stack.create(agent))
        assert ended.status.phase == EXECUTION_COMPLETED, ended.status.error
        idle.session_id = ended.spec.session_id
        yield idle


async def whole(world: World, path: str) -> bytes:
    return b"".join([chunk async for chunk in world.client.workspaces.download(world.session_id, path)])


async def pieces(count: int, piece: bytes) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield piece


async def nothing_pending(world: World) -> None:
    async with asyncio.timeout(300):
        while world.service.open or await world.pending():  # noqa: ASYNC110 - Temporal tells nobody
            await asyncio.sleep(0.05)


async def test_a_directory_is_listed_with_what_the_agent_left(world: World) -> None:
    files = {f.path: f async for f in world.client.workspaces.files(world.session_id)}

    assert files["/workspace/sub"].directory
    assert files["/workspace/odd\nname.bin"].size_bytes == 8
    assert files["/workspace/empty"].size_bytes == 0
    assert files["/workspace/odd\nname.bin"].modified_at.seconds > 1_700_000_000
    below = [f.path async for f in world.client.workspaces.files(world.session_id, "sub")]
    assert below == ["/workspace/sub/a.txt"]


async def test_files_come_out_as_they_are(world: World) -> None:
    assert await whole(world, "sub/a.txt") == b"hello\n"
    assert await whole(world, "/workspace/odd\nname.bin") == b"\x00\xffbinary"
    assert await whole(world, "/workspace/empty") == b""


async def test_a_directory_of_thousands_comes_in_pages(world: World) -> None:
    directory = world.stack.directory / "sandboxes" / "sessions" / world.session_id / "workspace" / "many"
    directory.mkdir()
    for index in range(2500):
        (directory / f"{'x' * 200}{index:05}").touch()

    found = [f.path async for f in world.client.workspaces.files(world.session_id, "many")]
    some = [f.path async for f in world.client.workspaces.files(world.session_id, "many", limit=7)]

    assert len(found) == 2500 == len(set(found))
    assert found == sorted(found)
    assert some == found[:7]


async def test_what_is_uploaded_is_there_for_the_next_command(world: World) -> None:
    piece = os.urandom(256 << 10)
    expected = hashlib.sha256(piece * 40).hexdigest()[:12]

    size = await world.client.workspaces.upload(
        world.session_id, "/workspace/given/big.bin", pieces(40, piece)
    )

    assert size == 40 * len(piece)
    execution = await world.client.start("look", session=world.session_id)
    ended = await world.stack.ended(execution)
    assert ended.status.phase == EXECUTION_COMPLETED, ended.status.error
    assert [call.result.split()[0] for call in ended.status.tool_calls] == [expected]
    assert await whole(world, "given/big.bin") == piece * 40


async def test_fifty_megabytes_pass_through_flat_memory(world: World) -> None:
    piece = os.urandom(256 << 10)
    tracemalloc.start()
    try:
        size = await world.client.workspaces.upload(world.session_id, "fifty", pieces(200, piece))
        digest, count = hashlib.sha256(), 0
        async for chunk in world.client.workspaces.download(world.session_id, "fifty"):
            assert len(chunk) <= 1 << 20
            digest.update(chunk)
            count += len(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert size == count == 200 * len(piece)
    assert digest.digest() == hashlib.sha256(piece * 200).digest()
    assert peak < 25 << 20


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "up/tmp", "pipe", "sub", "a\0b"])
async def test_what_is_no_file_of_the_session_is_refused(world: World, path: str) -> None:
    with pytest.raises(InvalidRequestError):
        await whole(world, path)


@pytest.mark.parametrize("path", ["planted", "up/etc/passwd", "up/up/up/etc/passwd", "up/../etc/passwd"])
async def test_links_of_the_agent_lead_to_nothing_of_the_host(world: World, path: str) -> None:
    with pytest.raises((NotFoundError, InvalidRequestError)):
        await whole(world, path)


async def test_a_link_of_the_agent_is_replaced_rather_than_followed_out(world: World) -> None:
    host = Path("/etc/passwd")
    before = await asyncio.to_thread(host.read_bytes)

    assert await world.client.workspaces.upload(world.session_id, "planted", pieces(1, b"mine")) == 4

    assert await asyncio.to_thread(host.read_bytes) == before
    assert await whole(world, "planted") == b"mine"


@pytest.mark.parametrize("path", ["../x", "/etc/x", "up/x", "sub", "/bin/skills/x"])
async def test_nothing_is_written_outside_of_the_session(world: World, path: str) -> None:
    with pytest.raises(InvalidRequestError):
        await world.client.workspaces.upload(world.session_id, path, pieces(400, bytes(256 << 10)))
    assert world.service.open == 0


async def test_what_is_not_there_is_not_found(world: World) -> None:
    with pytest.raises(NotFoundError, match="missing"):
        await whole(world, "missing")
    with pytest.raises(NotFoundError):
        _ = [f async for f in world.client.workspaces.files(world.session_id, "missing")]
    with pytest.raises(InvalidRequestError):
        _ = [f async for f in world.client.workspaces.files(world.session_id, "sub/a.txt")]
    with pytest.raises(NotFoundError, match="ses-none"):
        _ = [f async for f in world.client.workspaces.files("ses-none")]


async def test_an_upload_that_breaks_off_writes_nothing(world: World) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(1 << 20)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await world.client.workspaces.upload(world.session_id, "half", broken())

    await nothing_pending(world)
    names = [f.path async for f in world.client.workspaces.files(world.session_id)]
    assert not [name for name in names if "half" in name]


async def test_a_client_that_goes_away_leaves_nothing_pending(world: World) -> None:
    await world.client.workspaces.upload(world.session_id, "fifty", pieces(200, bytes(256 << 10)))

    async with aclosing(world.client.workspaces.download(world.session_id, "fifty")) as chunks:  # type: ignore[type-var]
        assert await anext(chunks)
        assert world.service.open == 1

    await nothing_pending(world)


async def test_without_a_runner_it_is_said_clearly(idle: World) -> None:
    idle.service._to_come = timedelta(seconds=2).total_seconds()
    agent = await idle.stack.agent(PREPARE)
    execution = await idle.stack.create(agent)

    with pytest.raises(UnavailableError, match="No runner came"):
        _ = [f async for f in idle.client.workspaces.files(execution.spec.session_id)]
    assert idle.service.open == 0


async def test_a_runner_that_stops_on_the_way_is_told(world: World) -> None:
    await world.client.workspaces.upload(world.session_id, "fifty", pieces(200, bytes(256 << 10)))
    stopping: asyncio.Task[None] | None = None

    with pytest.raises(UnavailableError):
        async for _ in world.client.workspaces.download(world.session_id, "fifty"):
            if stopping is None:
                stopping = asyncio.create_task(world.workers[0].stop())
            await asyncio.sleep(0.2)  # slower than the grace of the worker lets it be

    assert stopping is not None
    await stopping
    assert world.service.open == 0


async def test_a_runner_that_is_killed_on_the_way_is_told_and_leaves_nothing_pending(world: World) -> None:
    await world.client.workspaces.upload(world.session_id, "fifty", pieces(200, bytes(256 << 10)))
    await world.workers[0].stop()
    process = await world.stack.spawn_worker(world.address)

    with pytest.raises(UnavailableError, match="went away"):
        async for _ in world.client.workspaces.download(world.session_id, "fifty"):
            if process.returncode is None:
                process.kill()
                await process.wait()

    assert world.service.open == 0
    await nothing_pending(world)
