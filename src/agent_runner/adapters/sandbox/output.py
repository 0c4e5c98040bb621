"""Keeping what a command prints within bounds: its beginning, its end, and a live view."""

from __future__ import annotations

import codecs
from collections import deque

from agent_runner.ports.sandboxes import OnOutput

LEFT_OUT = "\n[... {count} bytes of output left out ...]\n"


class BoundedOutput:
    """Keeps the first and the last half of `limit` bytes of a stream."""

    def __init__(self, limit: int) -> None:
        self._head_limit = max(limit - limit // 2, 0)
        self._tail_limit = max(limit // 2, 0)
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._left_out = 0

    def add(self, data: bytes) -> None:
        room = self._head_limit - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if not data:
            return
        self._tail.append(data)
        self._tail_size += len(data)
        # Whole pieces only are dropped here, so that a flood costs no copying; `value` cuts exactly.
        while self._tail and self._tail_size - len(self._tail[0]) >= self._tail_limit:
            piece = self._tail.popleft()
            self._tail_size -= len(piece)
            self._left_out += len(piece)

    @property
    def truncated(self) -> bool:
        return self._left_out > 0 or self._tail_size > self._tail_limit

    def value(self) -> bytes:
        tail = b"".join(self._tail)
        if not self.truncated:
            return bytes(self._head) + tail
        cut = max(len(tail) - self._tail_limit, 0)
        note = LEFT_OUT.format(count=self._left_out + cut).encode()
        return bytes(self._head) + note + tail[cut:]


class LiveOutput:
    """Hands text to a watcher while the command runs, up to `limit` bytes in all.

    Both streams of a command share one, so the watcher sees them as they come.
    """

    def __init__(self, on_output: OnOutput | None, limit: int) -> None:
        self._on_output = on_output
        self._left = limit

    def stream(self) -> LiveStream:
        return LiveStream(self)

    def show(self, text: str, size: int) -> None:
        if self._on_output is None or self._left <= 0:
            return
        if text:
            self._on_output(text)
        self._left -= size
        if self._left <= 0:
            self._on_output("\n[... the rest of the output is not shown live ...]\n")


class LiveStream:
    """One stream's part of a live view: bytes to text, with characters cut between reads joined again."""

    def __init__(self, live: LiveOutput) -> None:
        self._live = live
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, data: bytes) -> None:
        self._live.show(self._decoder.decode(data), len(data))

    def close(self) -> None:
        if rest := self._decoder.decode(b"", final=True):
            self._live.show(rest, 0)
