"""Reading a log from the store, as far as one wants."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

from agent_runner.ports.stores import EventLog

_AT_ONCE: Final = 1000
_BYTES_AT_ONCE: Final = 4 << 20


async def stored_events(
    log: EventLog, execution_id: str, after_seq: int = 0
) -> AsyncGenerator[tuple[int, bytes], None]:
    """(seq, event) pairs after `after_seq`, read piece by piece however long the log is."""
    while True:
        rows = await log.read(execution_id, after_seq=after_seq, limit=_AT_ONCE, most_bytes=_BYTES_AT_ONCE)
        for row in rows:
            yield row
        if len(rows) < _AT_ONCE and sum(len(event) for _seq, event in rows) < _BYTES_AT_ONCE:
            return
        after_seq = rows[-1][0]
