"""Many watchers of one stream, in a process of their own.

    python -m bench.watch_clients ADDRESS METHOD REQUEST COUNT

Writes a line when every watcher has had its first message, and one JSON object when all streams have ended.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from typing import Any

import grpc

from agent_runner.v1.execution_service_pb2 import WatchExecutionResponse

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    # A connection for each watcher, as watchers of many machines have.
    ("grpc.use_local_subchannel_pool", 1),
)


class Watcher:
    """One watcher; the messages are kept as they came, and read when the clock has stopped."""

    def __init__(self, address: str, method: str, request: bytes) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        make: Any = self._channel.unary_stream(method)
        self._call = make(request, wait_for_ready=True)
        self.messages: list[bytes] = []
        self.ended = 0.0

    async def first(self) -> None:
        self.messages.append(await self._call.read())

    async def rest(self) -> None:
        while (message := await self._call.read()) is not grpc.aio.EOF:
            self.messages.append(message)
        self.ended = time.perf_counter()
        await self._channel.close()

    def seqs(self) -> list[int]:
        return [
            event.seq
            for message in self.messages
            for event in WatchExecutionResponse.FromString(message).events
        ]


async def watch(address: str, method: str, request: bytes, count: int) -> dict[str, object]:
    """Watch to the end.

    Raises:
        RuntimeError: a watcher missed an event, or had one twice.
    """
    watchers = [Watcher(address, method, request) for _ in range(count)]
    await asyncio.gather(*(watcher.first() for watcher in watchers))
    print("ready", flush=True)
    await asyncio.gather(*(watcher.rest() for watcher in watchers))
    ended = max(watcher.ended for watcher in watchers)
    events = len(watchers[0].seqs())
    for watcher in watchers:
        if watcher.seqs() != list(range(1, events + 1)):
            raise RuntimeError("A watcher missed an event, or had one twice.")
    return {
        "messages": [base64.b64encode(message).decode() for message in watchers[0].messages],
        "events": events,
        "deliveries": sum(len(watcher.messages) for watcher in watchers),
        "ended": ended,
    }


if __name__ == "__main__":
    address, method, request, count = sys.argv[1:]
    print(json.dumps(asyncio.run(watch(address, method, base64.b64decode(request), int(count)))))
