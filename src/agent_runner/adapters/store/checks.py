"""Mistakes of callers which every event log refuses in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from agent_runner.ports.stores import LogHead


def check_head(events: Sequence[bytes], expected_seq: int, head: LogHead) -> None:
    """Refuse a head that does not end where its events do.

    Raises:
        ValueError: it does not.
    """
    if head.last_seq != expected_seq + len(events):
        raise ValueError(f"{len(events)} events after {expected_seq} do not end at {head.last_seq}")


def checked_order(events: Sequence[tuple[int, bytes]]) -> int:
    """The last seq of compacted events; 0 when there are none.

    Raises:
        ValueError: seqs do not rise from 1 at least.
    """
    seqs = [0, *(seq for seq, _ in events)]
    if any(later <= earlier for earlier, later in pairwise(seqs)):
        raise ValueError("seqs of compacted events must rise, from 1 at least")
    return seqs[-1]
