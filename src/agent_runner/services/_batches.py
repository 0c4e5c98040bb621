"""Runs of events, serialized once for all who watch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MOST_BYTES: Final = 512 << 10
"""A batch is closed when it has this many bytes; one event alone may have more."""
_TAIL_BYTES: Final = 1 << 20
_TAIL_BATCHES: Final = 512

_EVENTS_TAG: Final = b"\x0a"
"""Field 1 (`events`), length-delimited."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Events `first` to `last`, by seq.

    Attributes:
        payload: a serialized WatchExecutionResponse.
    """

    first: int
    last: int
    payload: bytes


def varint(value: int) -> bytes:
    """A length, as protobuf writes it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def pack(events: Iterable[tuple[int, bytes]]) -> list[Batch]:
    """Batches of (seq, serialized event) pairs that follow each other."""
    batches: list[Batch] = []
    parts: list[bytes] = []
    first = last = size = 0
    for seq, body in events:
        if parts and size + len(body) > MOST_BYTES:
            batches.append(Batch(first, last, b"".join(parts)))
            parts, size = [], 0
        if not parts:
            first = seq
        parts += (_EVENTS_TAG, varint(len(body)), body)
        last, size = seq, size + len(body)
    if parts:
        batches.append(Batch(first, last, b"".join(parts)))
    return batches


class Tail:
    """The newest batches of one execution, for those who watch it live."""

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()
        self.size = 0

    def extend(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            self._batches.append(batch)
            self.size += len(batch.payload)
        while len(self._batches) > _TAIL_BATCHES or (self.size > _TAIL_BYTES and len(self._batches) > 1):
            self.size -= len(self._batches.popleft().payload)

    def clear(self) -> None:
        self._batches.clear()
        self.size = 0

    def after(self, seq: int) -> Batch | None:
        """What follows `seq`, joined to one batch of bounded size; None when it is not all here."""
        found: list[Batch] = []
        size = 0
        for batch in reversed(self._batches):
            if batch.last <= seq:
                break
            found.append(batch)
        if not found or found[-1].first != seq + 1:
            return None
        if len(found) == 1:
            return found[0]
        found.reverse()
        taken: list[Batch] = []
        for batch in found:
            if taken and size + len(batch.payload) > MOST_BYTES:
                break
            taken.append(batch)
            size += len(batch.payload)
        # Serialized messages joined are the message with all their events.
        return Batch(taken[0].first, taken[-1].last, b"".join([batch.payload for batch in taken]))
