"""What every event log does in the same way: mistakes it refuses, and how much it reads at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise

from agent_runner.ports.stores import LogHead


def check_head(events: Sequence[bytes], expected_seq: int, head: LogHead) -> None:
    """Refuse a head that does not end where its events do.

    Raises:
        ValueError: it does not.
    """
    if head.last_seq != expected_seq + len(events):
        raise ValueError(f"{len(events)} events after {expected_seq} do not end at {head.last_seq}")


def within(events: Iterable[tuple[int, bytes]], limit: int, most_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The events a reader asked for: at most `limit`, and none that comes after `most_bytes`."""
    size = 0
    for event in islice(events, max(limit, 0)):
        yield event
        size += len(event[1])
        if size >= most_bytes:
            return


def checked_order(events: Sequence[tuple[int, bytes]]) -> int:
    """The last seq of compacted events; 0 when there are none.

    Raises:
        ValueError: seqs do not rise from 1 at least.
    """
    seqs = [0, *(seq for seq, _ in events)]
    if any(later <= earlier for earlier, later in pairwise(seqs)):
        raise ValueError("seqs of compacted events must rise, from 1 at least")
    return seqs[-1]
