"""TCP proxies that do to connections what networks do: cut, hold, delay, break in the middle."""

from __future__ import annotations

import asyncio
import contextlib


class FaultProxy:
    """Listens on loopback for as long as it is open, and hands on to `target` unless told otherwise.

    Args:
        target: `host:port`; may be away, connections are then closed at once.
    """

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._server: asyncio.Server | None = None
        self._transports: set[asyncio.WriteTransport] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._cut = False
        self._delay = 0.0
        self._left: int | None = None
        self.address = ""
        self.connections = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.abort()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break all connections, and every new one until `mend`."""
        self._cut = True
        self.abort()

    def hold(self) -> None:
        """Let connections stand and nothing through until `mend`, as a dead router does."""
        self._open.clear()

    def delay(self, seconds: float) -> None:
        """Wait so long with each piece until `mend`."""
        self._delay = seconds

    def break_after(self, size: int) -> None:
        """Break all connections once so many bytes more have gone through, in the middle of a message."""
        self._left = size

    def abort(self) -> None:
        """Break all connections now; new ones are welcome."""
        for transport in tuple(self._transports):
            transport.abort()

    def mend(self) -> None:
        self._cut, self._delay, self._left = False, 0.0, None
        self._open.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._cut:
            writer.transport.abort()
            return
        try:
            upstream = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        self.connections += 1
        both = {writer.transport, upstream[1].transport}
        self._transports |= both
        # Cancelled at the end of all, which the server's callback would report as an error.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(self._pump(reader, upstream[1]), self._pump(upstream[0], writer))
        self._transports -= both
        for transport in both:
            transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._open.wait()
                if self._delay:
                    await asyncio.sleep(self._delay)
                if self._left is not None:
                    data, self._left = data[: self._left], self._left - len(data)
                writer.write(data)
                await writer.drain()
                if self._left is not None and self._left <= 0:
                    self._left = None
                    self.abort()
        writer.close()
