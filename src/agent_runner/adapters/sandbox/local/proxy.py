"""The only way out of a sandbox with an allow-list: an HTTP proxy on a unix socket, in the worker.

The sandbox keeps its empty network namespace; the socket's directory is shown in it at `/run/ar`, with a
small forwarder from 127.0.0.1. Names are resolved here, once, and the very address that was looked at is
connected to, so that no second answer of a name server leads elsewhere.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import structlog

log = structlog.get_logger(__name__)

FORWARDER_PORT = 3128

FORWARDER = f"""\
import os, select, socket, sys, threading
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", {FORWARDER_PORT}))
listener.listen(64)
if os.fork():
    os._exit(0)
null = os.open("/dev/null", os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(null, number)

def pass_on(client):
    try:
        proxy = socket.socket(socket.AF_UNIX)
        proxy.connect("/run/ar/proxy.sock")
        other = {{client: proxy, proxy: client}}
        while other:
            for ready in select.select(list(other), [], [])[0]:
                data = ready.recv(65536)
                if data:
                    other[ready].sendall(data)
                else:
                    return
    except OSError:
        pass
    finally:
        client.close()
        proxy.close()

while True:
    threading.Thread(target=pass_on, args=(listener.accept()[0],), daemon=True).start()
"""
"""Runs inside. Returns to its caller once it listens, and ends with the command's process space."""

PRELUDE = ("bash", "-p", "-c", 'python3 -I -S /run/ar/forward.py; exec "$@"', "bash")
"""Words to put before a command which may use the proxy."""

_HEAD_LIMIT = 64 << 10
_HEAD_SECONDS = 30.0
_CONNECT_SECONDS = 20.0
_IDLE_SECONDS = 600.0
_PORTS = (80, 443)


def proxy_environment() -> dict[str, str]:
    """Variables by which programs find the proxy."""
    url = f"http://127.0.0.1:{FORWARDER_PORT}"
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    return {**dict.fromkeys(names, url), **dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1,::1")}


@dataclass(frozen=True, slots=True)
class _Rule:
    """One line of an allow-list: `example.com`, `*.example.com`, `example.com:8443`, `10.0.0.5:5432`."""

    host: str
    port: int | None

    def allows(self, host: str, port: int) -> bool:
        if port != self.port and (self.port is not None or port not in _PORTS):
            return False
        if self.host.startswith("*."):
            return host.endswith(self.host[1:])
        return host == self.host


class AllowList:
    """Which hosts and ports may be reached; without a port, 80 and 443."""

    def __init__(self, hosts: Sequence[str]) -> None:
        """
        Raises:
            ValueError: a line is no host, or its port no number.
        """
        self._rules = [self._rule(line.strip().lower()) for line in hosts]

    @staticmethod
    def _rule(line: str) -> _Rule:
        match = re.fullmatch(r"(\*\.)?([a-z0-9._-]+|\[[0-9a-f:]+\])(?::(\d{1,5}))?", line)
        if match is None:
            raise ValueError(f"{line!r} is no host, such as example.com, *.example.com or example.com:8443")
        host = (match.group(1) or "") + match.group(2).strip("[]").rstrip(".")
        return _Rule(host, int(match.group(3)) if match.group(3) else None)

    def allows(self, host: str, port: int) -> bool:
        host = host.lower().rstrip(".")
        return any(rule.allows(host, port) for rule in self._rules)

    def allows_address(self, address: str, port: int) -> bool:
        """Whether an allowed name may lead to this address: to a private one only if that is listed."""
        if ipaddress.ip_address(address).is_global:
            return True
        return any(rule.host == address and rule.allows(address, port) for rule in self._rules)


class AllowListProxy:
    """The proxy's socket and its connections. Belongs to the event loop it is started on."""

    def __init__(self, directory: Path, allowed: AllowList) -> None:
        self.directory = directory
        self._allowed = allowed
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        self.directory.chmod(0o755)
        (self.directory / "forward.py").write_text(FORWARDER)
        (self.directory / "forward.py").chmod(0o644)
        path = self.directory / "proxy.sock"
        path.unlink(missing_ok=True)
        # By the directory's descriptor: paths of sockets end at 107 characters.
        listener = socket.socket(socket.AF_UNIX)
        with _short(self.directory) as short:
            listener.bind(f"{short}/proxy.sock")
        path.chmod(0o666)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=_HEAD_LIMIT)

    async def aclose(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        with suppress(OSError):
            for path in self.directory.iterdir():
                path.unlink()
            self.directory.rmdir()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._answer(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass  # the client went away, or speaks no HTTP
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
        method, target, version = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if method == "CONNECT":
            host, port, first = *_host_and_port(f"//{target}", 443), b""
        else:
            host, port = _host_and_port(target, 80)
            first = _forwarded(method, target, version, head)
        addresses = await self._addresses(host, port)
        if not addresses:
            log.info("connection refused", host=host, port=port)
            await _refuse(writer, 403, f"{host}:{port} is not in the sandbox's list of hosts.")
            return
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                away = await asyncio.open_connection(addresses[0], port)
        except (OSError, TimeoutError):
            await _refuse(writer, 502, f"{host}:{port} cannot be reached.")
            return
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        away[1].write(first)
        try:
            await asyncio.gather(_pump(reader, away[1]), _pump(away[0], writer))
        finally:
            away[1].close()

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Addresses to connect to; none where the host is not allowed."""
        if not self._allowed.allows(host, port):
            return []
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError):
            return []
        addresses = [str(entry[4][0]) for entry in found]
        return [address for address in addresses if self._allowed.allows_address(address, port)]


def _host_and_port(target: str, port: int) -> tuple[str, int]:
    parts = urlsplit(target)
    if not parts.hostname:
        raise ValueError(target)
    return parts.hostname, parts.port or port


def _forwarded(method: str, target: str, version: str, head: bytes) -> bytes:
    """The request as the server itself wants it: with a path, and without the proxy's own fields.

    One request per connection: on the next the client could name another host, unseen.
    """
    parts = urlsplit(target)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = head.split(b"\r\n")[1:-2]
    kept = [
        line
        for line in lines
        if not re.match(rb"(proxy-[\w-]+|connection|keep-alive|host)\s*:", line, re.IGNORECASE)
    ]
    start = f"{method} {path} {version}\r\nHost: {parts.netloc.rpartition('@')[2]}\r\nConnection: close\r\n"
    return start.encode("latin-1") + b"".join(line + b"\r\n" for line in kept) + b"\r\n"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        async with asyncio.timeout(_IDLE_SECONDS):
            data = await reader.read(1 << 16)
            if not data:
                break
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.write_eof()


async def _refuse(writer: asyncio.StreamWriter, status: int, message: str) -> None:
    body = (message + "\n").encode()
    reason = {403: "Forbidden", 502: "Bad Gateway"}[status]
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
    await writer.drain()


@contextmanager
def _short(directory: Path) -> Iterator[str]:
    """A path of few characters to a directory, while the block runs."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
