"""A TCP proxy that counts what goes to the server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable


@contextlib.asynccontextmanager
async def counting_proxy(target: str) -> AsyncIterator[tuple[str, Callable[[], int]]]:
    """Listens on loopback; gives its `host:port` and how many bytes went through towards the target."""
    host, _, port = target.rpartition(":")
    counted = 0

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool) -> None:
        nonlocal counted
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                counted += len(data) if count else 0
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
        except ConnectionError:
            writer.close()
            return
        await asyncio.gather(
            pump(reader, upstream_writer, count=True), pump(upstream_reader, writer, count=False)
        )

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", lambda: counted
    finally:
        server.close()
