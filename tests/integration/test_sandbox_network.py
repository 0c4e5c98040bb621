"""The allow-list: what a local sandbox reaches through the worker's proxy, and what it does not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.adapters.sandbox.local.proxy import AllowList
from agent_runner.errors import SettingsError
from agent_runner.ports.sandboxes import Sandbox, SandboxSpec


@pytest.fixture
async def web() -> AsyncIterator[int]:
    """A server which answers every request with the request it got."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + request)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
async def other() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A server nobody may reach."""
    reached = asyncio.Event()
    server = await asyncio.start_server(lambda *_: reached.set(), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], reached


@pytest.fixture
async def sandbox(tmp_path: Path, web: int) -> AsyncIterator[Sandbox]:
    provider = LocalProvider(
        tmp_path / "sandboxes",
        network="host-allowlist",
        allow_hosts=[f"127.0.0.1:{web}", f"localhost:{web}", "*.example.org"],
    )
    yield await provider.ensure(SandboxSpec("ses-1"))
    await provider.delete("ses-1")
    await provider.aclose()
    assert list((tmp_path / "sandboxes").glob("proxy-*")) == []


FETCH = """
import os, urllib.request
os.environ.pop("no_proxy")  # the server of this test is on the worker's loopback
os.environ.pop("NO_PROXY")
opener = urllib.request.build_opener(urllib.request.ProxyHandler({{"http": "http://127.0.0.1:3128"}}))
try:
    print(opener.open("{url}", timeout=100).read().decode())
except Exception as error:
    print("FAILED", error)
"""

CONNECT = """
import socket
s = socket.create_connection(("127.0.0.1", 3128), timeout=100)
s.sendall(b"CONNECT {target} HTTP/1.1\\r\\n\\r\\n")
print(s.recv(4096).decode())
s.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
print(s.recv(4096).decode())
"""


async def run(sandbox: Sandbox, code: str) -> str:
    await sandbox.put([("/tmp/try.py", code.encode())])
    return (await sandbox.exec("python3 /tmp/try.py 2>&1")).stdout.decode()


async def test_a_listed_host_answers(sandbox: Sandbox, web: int) -> None:
    answer = await run(sandbox, FETCH.format(url=f"http://127.0.0.1:{web}/a/b?c=d"))

    assert answer.startswith("GET /a/b?c=d HTTP/1.1")
    assert f"Host: 127.0.0.1:{web}" in answer
    assert "proxy" not in answer.lower()


async def test_a_tunnel_to_a_listed_host_works(sandbox: Sandbox, web: int) -> None:
    answer = await run(sandbox, CONNECT.format(target=f"127.0.0.1:{web}"))

    assert "200 Connection established" in answer
    assert "GET / HTTP/1.1" in answer


async def test_programs_find_the_proxy_by_their_variables(sandbox: Sandbox) -> None:
    result = await sandbox.exec("echo $http_proxy $HTTPS_PROXY; ls /run/ar")

    assert result.stdout.split()[:2] == [b"http://127.0.0.1:3128"] * 2


async def test_what_is_not_listed_is_refused(
    sandbox: Sandbox, other: tuple[int, asyncio.Event], web: int
) -> None:
    port, reached = other
    for url in (f"http://127.0.0.1:{port}/", "http://169.254.169.254/", "http://example.com/"):
        assert "403" in await run(sandbox, FETCH.format(url=url)), url
    for target in (f"127.0.0.1:{port}", "example.com:443", "www.example.org:22", f"0.0.0.0:{web}"):
        assert "403" in await run(sandbox, CONNECT.format(target=target)), target

    assert not reached.is_set()


async def test_a_listed_name_that_leads_to_a_private_address_is_refused(
    sandbox: Sandbox, web: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rebound(*_: object, **__: object) -> object:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.7", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", rebound)

    assert "403" in await run(sandbox, CONNECT.format(target="evil.example.org:443"))


async def test_there_is_no_way_around_the_proxy(sandbox: Sandbox, other: tuple[int, asyncio.Event]) -> None:
    port, reached = other
    code = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=100)"
    assert "refused" in await run(sandbox, code)
    assert "Read-only" in (await sandbox.exec("echo x > /run/ar/forward.py")).stderr.decode()
    assert not reached.is_set()


async def test_nonsense_does_no_harm(sandbox: Sandbox, web: int) -> None:
    nonsense = """
import os, socket
for data in (b"\\0" * 100000, b"GET", b"CONNECT :: x", b"CONNECT [::1]:99999 x", b"a b c", b"GET http:// x"):
    data += b"\\r\\n\\r\\n"
    s = socket.create_connection(("127.0.0.1", 3128), timeout=100)
    try:
        s.sendall(data); s.shutdown(socket.SHUT_WR); s.recv(100)
    except OSError:
        pass
"""
    await run(sandbox, nonsense)

    assert "GET / HTTP" in await run(sandbox, FETCH.format(url=f"http://127.0.0.1:{web}/"))


def test_the_list_is_read_as_documented() -> None:
    allowed = AllowList(["Example.com", "*.example.org", "example.net:8443", "10.0.0.5:5432"])

    assert allowed.allows("example.com", 443)
    assert allowed.allows("EXAMPLE.com.", 80)
    assert not allowed.allows("example.com", 22)
    assert not allowed.allows("www.example.com", 443)
    assert allowed.allows("a.b.example.org", 443)
    assert not allowed.allows("example.org", 443)
    assert not allowed.allows("notexample.org", 443)
    assert allowed.allows("example.net", 8443)
    assert not allowed.allows("example.net", 443)
    assert allowed.allows_address("1.1.1.1", 443)
    assert allowed.allows_address("10.0.0.5", 5432)
    for address in ("10.0.0.5", "127.0.0.1", "169.254.169.254", "::1", "192.168.0.1", "fd00::1"):
        assert not allowed.allows_address(address, 443)


def test_a_list_or_network_that_is_wrong_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="https://x"):
        LocalProvider(tmp_path, network="host-allowlist", allow_hosts=["https://x/"])
    with pytest.raises(SettingsError, match="host-allowlist"):
        LocalProvider(tmp_path, network="some")
