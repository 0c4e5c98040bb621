"""The web port over real HTTP, in front of a real control plane."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from typing import Any, NoReturn

import httpx
import pytest
from structlog.testing import capture_logs
from unit.services.conftest import World
from unit.services.fakes.resources import (
    COMPLETED,
    IN_PROGRESS,
    agent,
    called,
    calls,
    execution,
    goes_on,
    says,
)
from unit.services.fakes.runners import Runner

from agent_runner.client import AgentRunner
from agent_runner.console.application import TextStream
from agent_runner.console.events import EventStream
from agent_runner.console.server import Console
from agent_runner.controlplane.server import ControlPlane
from agent_runner.errors import SettingsError, UnavailableError
from agent_runner.services.container import Services
from agent_runner.services.watching import Batch
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.runner_service_pb2 import UploadToolResultHeader
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution

KEY = "a key nobody guesses"


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def services(world: World) -> Services:
    return world.process()


@asynccontextmanager
async def web(services: Services, key: str | None = None, **settings: Any) -> AsyncIterator[str]:
    server = ControlPlane(services, address="127.0.0.1:0", api_key=key, version="1.2.3")
    port = await server.start()
    console = Console("127.0.0.1:0", f"127.0.0.1:{port}", key, **settings)
    try:
        yield await console.start()
    finally:
        await console.stop()
        await server.stop(0)


@pytest.fixture
async def url(services: Services) -> AsyncIterator[str]:
    async with web(services, heartbeat=timedelta(milliseconds=50)) as address:
        yield address


@pytest.fixture
async def running(services: Services) -> AgentExecution:
    helper = await services.agents.create(agent())
    return await services.executions.create(execution(agent_id=helper.metadata.id))


def path(running: AgentExecution) -> str:
    return f"/v1/executions/{running.metadata.id}/events"


def parsed(text: str) -> list[tuple[int, dict[str, Any]]]:
    """(id, data) of each event in a whole stream."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "id" in fields:
            events.append((int(fields["id"]), json.loads(fields["data"])))
    return events


async def quiet(services: Services) -> None:
    """Until nobody watches any more."""
    async with asyncio.timeout(120):
        while services.watches.watchers:  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(0.01)


async def test_a_finished_execution_is_streamed_whole_and_the_stream_ends(
    url: str, services: Services, running: AgentExecution
) -> None:
    runner = Runner(services, running.metadata.id)
    await runner.start()
    await runner.send(IN_PROGRESS, says("a"), goes_on("a", "zwölf\n\nid: 9"), COMPLETED)
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.get(path(running))

        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        events = parsed(answer.text)
        assert [seq for seq, _ in events] == [1, 2, 3, 4, 5, 6]
        assert events[4][1]["messageDelta"]["text"] == "zwölf\n\nid: 9"
        assert answer.text.endswith("event: end\ndata: {}\n\n")

        later = await client.get(path(running), params={"after_seq": 1}, headers={"Last-Event-ID": "4"})
        assert [seq for seq, _ in parsed(later.text)] == [5, 6]
        assert (await client.get(path(running), headers={"Last-Event-ID": "6"})).status_code == 204
    await quiet(services)


async def test_live_events_come_as_they_happen_and_silence_is_broken_by_heartbeats(
    url: str, services: Services, running: AgentExecution
) -> None:
    runner = Runner(services, running.metadata.id)
    await runner.start()
    async with httpx.AsyncClient(base_url=url) as client, client.stream("GET", path(running)) as answer:
        lines = answer.aiter_lines()
        async with asyncio.timeout(120):
            async for line in lines:
                if line.startswith(":"):
                    break
            await runner.send(IN_PROGRESS)
            async for line in lines:
                if line == "id: 3":
                    break
            await runner.send(COMPLETED)
            rest = [line async for line in lines]
    assert "event: end" in rest
    await quiet(services)


@pytest.mark.parametrize("breaks", [False, True])
async def test_only_a_stream_that_has_come_to_its_end_tells_browsers_not_to_ask_again(breaks: bool) -> None:
    async def events() -> AsyncIterator[ExecutionEvent]:
        yield ExecutionEvent(seq=1)
        if breaks:
            raise UnavailableError("The server is away.")

    transport = httpx.ASGITransport(EventStream(events(), asyncio.Event()))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        body = (await client.get("/")).text

    assert "id: 1\n" in body
    assert ("event: end" in body) is not breaks


async def test_who_leaves_is_not_watched_for_any_more(
    url: str, services: Services, running: AgentExecution
) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        for _ in range(5):
            async with client.stream("GET", path(running)) as answer:
                await anext(answer.aiter_lines())
    await quiet(services)


async def test_who_asks_for_the_head_of_a_stream_does_not_watch(
    url: str, services: Services, running: AgentExecution
) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.head(path(running))
        assert answer.headers["content-type"].startswith("text/event-stream")
        # The connection is open for the next request, and another one can be made on it.
        assert (await client.get("/healthz")).status_code == 200
        assert services.watches.watchers == 0


async def test_no_more_is_fetched_ahead_for_a_slow_reader_than_a_mebibyte() -> None:
    fetched = 0

    async def told() -> AsyncIterator[ExecutionEvent]:
        nonlocal fetched
        for number in range(100):
            fetched += 1
            yield ExecutionEvent(seq=number + 1, message_delta={"message_id": "m", "text": "x" * 100_000})

    taken = 0
    reads = asyncio.Event()

    async def send(message: Any) -> None:
        nonlocal taken
        taken += message.get("body", b"").count(b'data: {"seq"')
        if not reads.is_set() and taken:
            reads.set()
            for _ in range(1000):  # what can be fetched meanwhile is
                await asyncio.sleep(0)
            assert fetched <= 2 * 12

    async def receive() -> Any:
        await asyncio.Event().wait()

    await EventStream(told(), asyncio.Event())({}, receive, send)
    assert taken == 100


async def test_a_slow_reader_is_cut_off(services: Services, running: AgentExecution) -> None:
    runner = Runner(services, running.metadata.id)
    await runner.start()
    async with web(services, slow_after=timedelta(milliseconds=300)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect((host, int(port)))
            slow.sendall(f"GET {path(running)} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            async with asyncio.timeout(120):
                while not services.watches.watchers:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await runner.send(says("a"), *(goes_on("a", "x" * 200_000) for _ in range(60)))
            await quiet(services)


async def test_who_reads_a_result_too_slowly_is_cut_off() -> None:
    closed = asyncio.Event()

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"text"
        finally:
            closed.set()

    async def takes_nothing(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def stays() -> Any:
        await asyncio.Event().wait()

    answer = TextStream(pieces(), slow_after=timedelta(milliseconds=10))
    await answer({"type": "http"}, stays, takes_nothing)
    assert closed.is_set()


async def test_streams_end_when_the_server_stops(services: Services, running: AgentExecution) -> None:
    async with httpx.AsyncClient() as client:
        async with web(services) as address:
            request = client.build_request("GET", f"{address}{path(running)}")
            answer = await client.send(request, stream=True)
            lines = answer.aiter_lines()
            await anext(lines)
        async with asyncio.timeout(120):
            assert "event: end" not in [line async for line in lines]
        await answer.aclose()


@pytest.mark.parametrize(
    ("name", "query", "status", "code"),
    [
        ("aex-nobody", "", 404, "NOT_FOUND"),
        ("nonsense", "", 404, "NOT_FOUND"),
        (None, "?after_seq=x", 400, "INVALID_ARGUMENT"),
        (None, "?after_seq=-1", 400, "INVALID_ARGUMENT"),
        (None, f"?after_seq={1 << 64}", 400, "INVALID_ARGUMENT"),
        (None, f"?after_seq={'9' * 5000}", 400, "INVALID_ARGUMENT"),
    ],
)
async def test_what_cannot_be_answered_is_told_as_json(
    url: str, running: AgentExecution, name: str | None, query: str, status: int, code: str
) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.get(f"/v1/executions/{name or running.metadata.id}/events{query}")
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == code
        assert (await client.get("/nothing")).json()["error"]["message"] == "Not Found"


async def test_a_key_is_asked_for_but_for_health(services: Services, running: AgentExecution) -> None:
    async with web(services, KEY) as address, httpx.AsyncClient(base_url=address) as client:
        for shown in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            for place in (path(running), "/metrics"):
                answer = await client.get(place, headers=shown)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
        query = await client.get(path(running), params={"access_token": KEY})
        assert query.status_code == 401
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).json() == {"ready": True}
        shown = {"Authorization": f"bearer {KEY}", "Host": "runner.example"}
        assert (await client.get("/metrics", headers=shown)).status_code == 200


async def test_pages_of_other_sites_cannot_ask_without_a_key(url: str, running: AgentExecution) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.get(path(running), headers={"Host": "evil.example:7235"})
        assert answer.status_code == 403
        assert (await client.get("/metrics", headers={"Host": "localhost:7235"})).status_code == 200


async def test_metrics_are_what_prometheus_reads(url: str, world: World, services: Services) -> None:
    world.workflows.open.add("aex-gone")
    for _ in range(2):
        await services.reconciler.reconcile()
    async with httpx.AsyncClient(base_url=url) as client:
        text = (await client.get("/metrics")).text

    assert 'agent_runner_executions{phase="in_progress"} 0.0' in text
    assert "agent_runner_reconciled_orphans_total 1.0" in text
    assert "# TYPE agent_runner_watchers gauge" in text
    assert "process_resident_memory_bytes" in text


async def test_readiness_tells_what_is_away(url: str, world: World) -> None:
    world.workflows.away = True
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {"ready": False, "problem": "Temporal does not answer."}
        assert (await client.get("/healthz")).status_code == 200


async def test_readiness_tells_that_the_database_is_away(
    url: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise UnavailableError("mongo-0.internal:27017 refuses connections.")

    monkeypatch.setattr(world.store, "get", away)
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {"ready": False, "problem": "The database cannot be used."}


async def test_a_port_that_is_taken_is_told_or_gone_around() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = Console(listen, "127.0.0.1:1", None)
        with pytest.raises(SettingsError, match="web_listen"):
            await refused.start()
        await refused.stop()
        other = Console(listen, "127.0.0.1:1", None, elsewhere=True)
        assert await other.start() != f"http://{listen}"
        await other.stop()


async def test_a_web_port_that_fails_says_so_and_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: Console) -> NoReturn:
        raise ImportError("There is no such library here.")

    monkeypatch.setattr(Console, "_load", broken)
    console = Console("127.0.0.1:0", "127.0.0.1:1", None)
    with capture_logs() as logs:
        async with httpx.AsyncClient(base_url=await console.start()) as client:
            with pytest.raises(httpx.ReadError):
                await client.get("/healthz")
            with pytest.raises(httpx.ConnectError):
                await client.get("/healthz")
        await console.stop()
    assert "web port has failed" in [entry["event"] for entry in logs]


async def test_what_a_tool_gave_is_text_for_nobody_to_run(
    services: Services, running: AgentExecution
) -> None:
    runner = Runner(services, running.metadata.id)
    grant = await runner.start()
    text = "<script>alert('ü')</script>\n".encode() * 30_000
    header = UploadToolResultHeader(
        execution_id=running.metadata.id,
        attempt=grant.attempt,
        token=grant.token,
        tool_call_id="a/b c",
        size_bytes=len(text),
        sha256=hashlib.sha256(text).digest(),
    )

    async def chunks() -> AsyncIterator[bytes]:
        yield text

    ended = called("a/b c", "its ends")
    ended.tool_call_completed.artifact_key = await services.results.keep(header, chunks())
    await runner.send(calls("a/b c"), ended, calls("open"))
    base = f"/v1/executions/{running.metadata.id}/tool-results"

    async with web(services, KEY) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.get(f"{base}/a%2Fb%20c")).status_code == 401
        client.headers["Authorization"] = f"Bearer {KEY}"
        answer = await client.get(f"{base}/a%2Fb%20c")
        others = [await client.get(f"{base}/{call}") for call in ("open", "none", "..%2F..%2Fevents")]

    assert answer.status_code == 200 and answer.content == text
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("sandbox")
    assert [other.status_code for other in others] == [409, 404, 404]


async def test_what_is_on_its_way_to_a_slow_watcher_has_a_bound_however_fast_the_network_is(
    services: Services, running: AgentExecution
) -> None:
    runner = Runner(services, running.metadata.id)
    await runner.start()
    for number in range(150):
        await runner.send(calls(f"c{number}"), called(f"c{number}", "x" * 200_000))
    handed_out: list[int] = []
    server = ControlPlane(services, address="127.0.0.1:0", api_key=None, version="test")
    watch = services.watches.watch

    async def counting(execution_id: str, after_seq: int = 0) -> AsyncGenerator[Batch, None]:
        async with aclosing(watch(execution_id, after_seq)) as batches:
            async for batch in batches:
                handed_out.append(len(batch.payload))
                yield batch

    services.watches.watch = counting  # type: ignore[method-assign,assignment]
    async with AgentRunner(f"127.0.0.1:{await server.start()}") as client:
        await client.executions.get(running.metadata.id)  # so gRPC knows how fast it is
        events = client.watch(running.metadata.id)
        await anext(events)
        settled = -1
        while settled != len(handed_out):  # until no more is taken on the way
            settled = len(handed_out)
            await asyncio.sleep(0.5)
        assert sum(handed_out) < 8 << 20  # of 30 MiB
        await events.aclose()  # type: ignore[attr-defined]
    await server.stop(0)
