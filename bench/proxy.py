"""A TCP proxy that counts what goes to the server, and looks for the largest message in it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

_FRAME_HEAD, _PREFACE, _PREFIX = 9, 24, 5
_DATA, _PADDED = 0, 0x8


class Counter:
    """What went to the server, headers included.

    Attributes:
        sent: bytes, of all connections.
        largest: bytes of the largest gRPC message.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.largest = 0


class _Frames:
    """Finds the lengths of gRPC messages in one HTTP/2 connection's bytes towards the server."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._bytes = bytearray()
        self._skip = _PREFACE
        self._missing: dict[int, int] = {}
        """Bytes of a message that are still to come, by stream."""
        self._heads: dict[int, bytearray] = {}

    def feed(self, data: bytes) -> None:
        self._counter.sent += len(data)
        self._bytes += data
        if self._skip:
            gone = min(self._skip, len(self._bytes))
            del self._bytes[:gone]
            self._skip -= gone
        while len(self._bytes) >= _FRAME_HEAD:
            length = int.from_bytes(self._bytes[:3], "big")
            if len(self._bytes) < _FRAME_HEAD + length:
                return
            kind, flags = self._bytes[3], self._bytes[4]
            stream = int.from_bytes(self._bytes[5:9], "big") & 0x7FFFFFFF
            payload = bytes(self._bytes[_FRAME_HEAD : _FRAME_HEAD + length])
            del self._bytes[: _FRAME_HEAD + length]
            if kind == _DATA:
                if flags & _PADDED:
                    payload = payload[1 : len(payload) - payload[0]]
                self._take(stream, payload)

    def _take(self, stream: int, payload: bytes) -> None:
        while payload:
            missing = self._missing.get(stream, 0)
            if missing:
                self._missing[stream] = max(missing - len(payload), 0)
                payload = payload[missing:]
                continue
            head = self._heads.setdefault(stream, bytearray())
            wanted = _PREFIX - len(head)
            head += payload[:wanted]
            payload = payload[wanted:]
            if len(head) == _PREFIX:
                length = int.from_bytes(head[1:], "big")
                self._counter.largest = max(self._counter.largest, length)
                self._missing[stream] = length
                head.clear()


@contextlib.asynccontextmanager
async def counting_proxy(target: str) -> AsyncIterator[tuple[str, Counter]]:
    """Listens on loopback; gives its `host:port` and what went through towards the target."""
    host, _, port = target.rpartition(":")
    counter = Counter()

    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frames: _Frames | None
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if frames is not None:
                    frames.feed(data)
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
            pump(reader, upstream_writer, _Frames(counter)), pump(upstream_reader, writer, None)
        )

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", counter
    finally:
        server.close()
