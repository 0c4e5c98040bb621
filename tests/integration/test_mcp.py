"""Tools of real MCP servers, in the sandbox and over HTTP, and of servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from langchain_core.messages import ToolMessage

from agent_runner.adapters.mcp.connector import McpSessions
from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.domain.mcp_servers import Container, Endpoint, McpServerPlan, Program
from agent_runner.errors import McpServerError
from agent_runner.ports.mcp import McpTools
from agent_runner.ports.sandboxes import Sandbox, SandboxSpec

FAKE = Path(__file__).parent / "fakes" / "mcp_tools_server.py"
SERVER = f"/workspace/server-{secrets.token_hex(8)}.py"
"""Named so that its processes are known as this run's."""
PACKAGES = next(path for path in sys.path if path.endswith("site-packages"))


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Sandbox]:
    if Path(PACKAGES).is_relative_to("/tmp"):
        pytest.skip("the servers' packages are below /tmp, where a sandbox has its own files")
    provider = LocalProvider(tmp_path / "sandboxes", extra_ro_paths=[Path(sys.base_prefix), Path(PACKAGES)])
    if problem := await provider.check():
        pytest.skip(problem)
    sandbox = await provider.ensure(SandboxSpec("ses-1", env={"SESSION_SECRET": "not for servers"}))
    assert await sandbox.put([(SERVER, FAKE.read_bytes())]) == [None]
    yield sandbox
    await provider.aclose()


@asynccontextmanager
async def opened(plans: Sequence[McpServerPlan], sandbox: Sandbox, **options: Any) -> AsyncIterator[McpTools]:
    connector = McpSessions(**options)
    try:
        async with connector.open(plans, sandbox) as tools:
            yield tools
    finally:
        await connector.aclose()


def stdio(name: str = "tools", **options: Any) -> McpServerPlan:
    python = str(Path(sys.base_prefix) / "bin" / "python3")
    env = {"PYTHONPATH": PACKAGES, "GIVEN": "yes"}
    return McpServerPlan(name, Program((python, SERVER), env), **options)


def raw(name: str, script: str, **options: Any) -> McpServerPlan:
    return McpServerPlan(name, Program(("python3", "-c", script), {}), **options)


async def call(tools: McpTools, name: str, **arguments: Any) -> ToolMessage:
    tool = next(offered.tool for offered in tools.offered if offered.tool.name == name)
    call = {"name": name, "args": arguments, "id": "c1", "type": "tool_call"}
    result = await tool.ainvoke(call)
    assert isinstance(result, ToolMessage)
    return result


def text(message: ToolMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(block.get("text", "") for block in message.content if isinstance(block, dict))


def names(tools: Sequence[Any]) -> list[str]:
    return [tool.name for tool in tools]


async def test_a_server_runs_in_the_sandbox_with_its_own_variables_alone(sandbox: Sandbox) -> None:
    async with opened([stdio()], sandbox) as tools:
        assert not tools.warnings
        assert text(await call(tools, "add", a=2, b=40)) == "42"
        variables = text(await call(tools, "environment"))

    assert "GIVEN=yes" in variables
    assert "HOME=/workspace" in variables
    assert "SESSION_SECRET" not in variables
    assert not processes_with(SERVER)


def processes_with(words: str) -> list[int]:
    """Processes the host has whose command line has these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if words.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


async def test_an_error_of_a_tool_reaches_the_model_as_an_error(sandbox: Sandbox) -> None:
    async with opened([stdio()], sandbox) as tools:
        failed = await call(tools, "fail", reason="no such city")
        wrong = await call(tools, "add", a="two", b=1)

    assert (failed.status, "no such city" in text(failed)) == ("error", True)
    assert wrong.status == "error"


async def test_a_name_of_a_built_in_tool_gets_the_servers_in_front(sandbox: Sandbox) -> None:
    async with opened([stdio()], sandbox) as tools:
        assert "tools_read_file" in names(tools.for_agent())
        assert text(await call(tools, "tools_read_file", path="x")) == "read x"


async def test_two_servers_with_one_tool_name_both_keep_it_behind_their_own(sandbox: Sandbox) -> None:
    async with opened([stdio("one"), stdio("two")], sandbox) as tools:
        assert {"one_add", "two_add"} <= set(names(tools.for_agent()))
        assert text(await call(tools, "two_add", a=1, b=1)) == "2"


async def test_agent_and_sub_agents_get_what_they_have_chosen(sandbox: Sandbox) -> None:
    async with opened([stdio(enabled_tools=("add", "nonsense"))], sandbox) as tools:
        assert names(tools.for_agent()) == ["add"]
        assert names(tools.for_sub_agent(["tools"], {})) == ["add"]
        assert names(tools.for_sub_agent(["tools"], {"tools": ["fail"]})) == ["fail"]
        assert names(tools.for_sub_agent([], {})) == []
        assert list(tools.warnings) == ["MCP server 'tools' has no tool nonsense."]


async def test_progress_is_told_and_counts_as_a_sign_of_life(sandbox: Sandbox) -> None:
    told: list[tuple[str, str]] = []
    plan, mine = stdio(timeout=timedelta(seconds=5)), ContextVar("mine", default="nobody's")
    async with opened([plan], sandbox, on_progress=lambda line: told.append((mine.get(), line))) as tools:
        mine.set("my call")
        assert text(await call(tools, "slow", seconds=6)) == "done"

    assert told[0] == ("my call", "1 of 120: working\n")


async def test_a_silent_call_ends_as_an_error_and_the_server_hears_of_it(sandbox: Sandbox) -> None:
    async with opened([stdio(timeout=timedelta(seconds=4))], sandbox) as tools:
        silent = await call(tools, "sleep", seconds=60)
        again = await call(tools, "add", a=1, b=1)

    assert (silent.status, text(silent)) == ("error", "The tool was silent for 4 s and was cancelled.")
    assert text(again) == "2"
    assert await sandbox.get(["/workspace/cancelled"]) == [(b"yes", None)]


async def test_cancelling_a_call_cancels_it_at_the_server(sandbox: Sandbox) -> None:
    async with opened([stdio()], sandbox) as tools:
        running = asyncio.ensure_future(call(tools, "sleep", seconds=60))
        async with asyncio.timeout(120):
            while await sandbox.get(["/workspace/sleeping"]) != [(b"yes", None)]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert text(await call(tools, "add", a=1, b=1)) == "2"

    assert await sandbox.get(["/workspace/cancelled"]) == [(b"yes", None)]


async def test_a_server_that_does_not_end_holds_up_nobody(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is given some time, and nobody waits for that.
    monkeypatch.setattr("agent_runner.adapters.sandbox.longrunning._GRACE", 3600)
    monkeypatch.setattr("agent_runner.adapters.mcp.connector._CLOSE_TIMEOUT", 3600)
    mark = secrets.token_hex(8)
    stubborn = LIAR.replace("TOOLS", "[]") + f"\nimport time\ntime.sleep(600)  # {mark}\n"
    connector = McpSessions()
    async with asyncio.timeout(300):
        async with connector.open([raw("stubborn", stubborn)], sandbox) as tools:
            assert not tools.warnings

        assert processes_with(mark)
        for pid in processes_with(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await connector.aclose()


async def test_what_a_model_cannot_see_is_told_in_words(sandbox: Sandbox) -> None:
    async with opened([stdio()], sandbox) as tools:
        seen = await call(tools, "media")
        long = await call(tools, "large", size=3 << 20)

    assert [block["type"] for block in seen.content if isinstance(block, dict)] == ["text", "image", "text"]
    assert text(seen) == "words[a sound of type audio/wav, which cannot be passed on]"
    assert text(long) == "x" * (3 << 20)


async def test_fifty_megabytes_end_the_session_and_not_the_run(sandbox: Sandbox) -> None:
    async with opened([stdio()], sandbox) as tools:
        large = await call(tools, "large", size=50 << 20)
        after = await call(tools, "add", a=1, b=1)

    assert large.status == after.status == "error"
    assert "more than 8 MiB" in text(large)
    assert "MCP server 'tools'" in text(after)


async def test_a_server_that_dies_in_a_call_is_an_error_with_its_last_words(sandbox: Sandbox) -> None:
    async with opened([stdio()], sandbox) as tools:
        died = await call(tools, "die")
        after = await call(tools, "add", a=1, b=1)

    assert died.status == after.status == "error"
    assert "last words" in text(died)


@pytest.mark.parametrize(
    ("plan", "warning"),
    [
        (McpServerPlan("bad", None, problem="it needs TOKEN, which nothing sets"), "it needs TOKEN"),
        (
            McpServerPlan("bad", Program(("no-such-program",), {})),
            "it has ended: bwrap: execvp no-such-program",
        ),
        (raw("bad", "import sys; sys.exit('no configuration')"), "it has ended: no configuration"),
        (raw("bad", "print('x' * (20 << 20))"), "more than 8 MiB"),
        (McpServerPlan("bad", Container("image", (), {})), "need the sandbox kind docker"),
        (McpServerPlan("bad", Endpoint("http://127.0.0.1:9/mcp", {})), "nobody answers at its address"),
    ],
    ids=["variables", "program", "exit", "flood", "docker", "address"],
)
async def test_a_server_that_cannot_be_opened_is_a_warning(
    sandbox: Sandbox, plan: McpServerPlan, warning: str
) -> None:
    async with opened([plan, stdio()], sandbox, start_timeout=timedelta(seconds=200)) as tools:
        assert text(await call(tools, "add", a=1, b=1)) == "2"
        (said,) = tools.warnings

    assert said.startswith("MCP server 'bad' cannot be used: ")
    assert warning in said


async def test_a_server_that_never_answers_costs_its_time_limit_and_no_more(sandbox: Sandbox) -> None:
    silent = raw("silent", "import time; print('hello, I am no server', flush=True); time.sleep(600)")

    async with asyncio.timeout(300):  # the sleepers sleep for longer
        async with opened([silent, silent, silent], sandbox, start_timeout=timedelta(seconds=1)) as tools:
            assert [w.rpartition(": ")[2] for w in tools.warnings] == ["it did not answer within 1 s."] * 3


async def test_a_required_server_that_cannot_be_opened_is_an_error(sandbox: Sandbox) -> None:
    with pytest.raises(McpServerError, match="'bad', which is required, could not be opened: it needs X"):
        async with opened([McpServerPlan("bad", None, required=True, problem="it needs X")], sandbox):
            pass


LIAR = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("method") == "initialize":
        info = {"name": "l", "version": "1"}
        result = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": info}
    elif asked.get("method") == "tools/list":
        result = {"tools": TOOLS}
    elif asked.get("method") == "tools/call":
        result = {"content": [{"type": "text", "text": "hi"}], "structuredContent": {"n": "no number"}}
    else:
        continue
    print("noise on the line", flush=True)
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


async def test_tools_with_schemas_no_provider_takes_are_left_out(sandbox: Sandbox) -> None:
    good = {"type": "object", "properties": {"q": {"type": "string"}}}
    tools = [
        {
            "name": "good one",
            "inputSchema": good,
            "outputSchema": {"type": "object", "properties": {"n": {"type": "number"}}},
        },
        {"name": "no object", "inputSchema": {"type": "string"}},
        {"name": "wrong", "inputSchema": {"type": "object", "properties": {"q": {"type": "strong"}}}},
        {"name": "huge", "inputSchema": {"type": "object", "description": "x" * 100_000}},
        {"name": "bare", "inputSchema": good},
        {"name": "bare", "inputSchema": {"type": "object"}},
    ]
    script = LIAR.replace("TOOLS", json.dumps(tools))
    async with opened([raw("liar", script)], sandbox) as found:
        answer = await call(found, "good_one", q="x")
        assert names(found.for_agent()) == ["good_one", "bare"]
        assert [w.split(" is left out: ")[1][:20] for w in found.warnings] == [
            "its arguments are no",
            "the schema of its ar",
            "the schema of its ar",
            "it is offered twice.",
        ]

    assert answer.status == "error"
    assert "Invalid structured content" in text(answer)


@contextmanager
def http_server(transport: str) -> Iterator[str]:
    """The same server over HTTP on a free port of the loopback."""
    from integration.fakes import mcp_tools_server

    server = mcp_tools_server.server
    server._session_manager = None  # one per run
    app = server.streamable_http_app() if transport == "mcp" else server.sse_app()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=1)
        running = uvicorn.Server(config)
        started = threading.Event()
        startup = running.startup

        async def tell(sockets: Any = None) -> None:
            await startup(sockets)
            started.set()

        running.startup = tell  # type: ignore[method-assign]
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        assert started.wait(300)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/{transport}"
        finally:
            running.should_exit = True
            thread.join(300)


@pytest.mark.parametrize("transport", ["mcp", "sse"])
async def test_servers_over_http_get_headers_and_query(sandbox: Sandbox, transport: str) -> None:
    with http_server(transport) as url:
        plan = McpServerPlan("web", Endpoint(f"{url}?team=a", {"X-Key": "k"}), timeout=timedelta(minutes=5))
        async with opened([plan], sandbox) as tools:
            assert not tools.warnings
            assert text(await call(tools, "add", a=1, b=2)) == "3"
            assert text(await call(tools, "headers")).startswith("k ")
            large = await call(tools, "large", size=9 << 20)
            assert (large.status, "more than 8 MiB" in text(large)) == ("error", True)


@asynccontextmanager
async def raw_http(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Gives every request the same bytes; tells address and requests."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp", asked


def http(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = (f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close", "", "")
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize(
    ("answer", "warning"),
    [
        (http("401 Unauthorized"), "it answered HTTP 401"),
        (http("500 Oops"), "it answered HTTP 500"),
        (http("200 OK", "Content-Type: text/html", body=b"<p>Hello"), "text/html"),
        (http("200 OK", "Content-Type: application/json", body=b"{]"), ""),
        (http("200 OK", "Content-Type: application/json", "Content-Encoding: gzip", body=b"x"), "compressed"),
        (http("307 Elsewhere", "Location: http://127.0.0.2:9/mcp"), ""),
        (b"garbage\r\n\r\n", ""),
    ],
    ids=["key", "broken", "page", "no JSON", "compressed", "elsewhere", "no HTTP"],
)
async def test_an_address_that_speaks_no_mcp_is_a_warning_and_keeps_the_key(
    sandbox: Sandbox, answer: bytes, warning: str
) -> None:
    async with raw_http(answer) as (url, asked):
        plan = McpServerPlan("web", Endpoint(f"{url}?key=s3cret", {"X-Key": "s3cret"}))
        limit = timedelta(seconds=120 if warning else 10)  # which the others may use up
        async with opened([plan], sandbox, start_timeout=limit) as tools:
            (said,) = tools.warnings

    assert said.startswith("MCP server 'web' cannot be used: ")
    assert warning in said
    assert b"X-Key: s3cret" in asked[0]
    assert "s3cret" not in said
