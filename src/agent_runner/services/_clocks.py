"""Time and ids, which the services are given rather than take."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp

from agent_runner.domain.ids import RANDOM_BITS, make_id

Clock: TypeAlias = Callable[[], datetime]
NewId: TypeAlias = Callable[[str], str]
"""From a prefix to an id nobody has had."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def rfc3339(moment: datetime) -> str:
    """RFC 3339 with microseconds, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


class IdSource:
    """Makes ids that sort in the order they were made in, also within a millisecond.

    Belongs to one process; ids of several processes sort by their clocks.
    """

    def __init__(self, clock: Clock = utc_now) -> None:
        self._clock = clock
        self._last = 0

    def __call__(self, prefix: str) -> str:
        value = int(self._clock().timestamp() * 1000) << RANDOM_BITS
        if value >> RANDOM_BITS > self._last >> RANDOM_BITS:
            # One bit is left free, so that counting on within a millisecond never runs over.
            value |= int.from_bytes(os.urandom(10)) >> 1
        else:
            value = self._last + 1 + int.from_bytes(os.urandom(4))
        self._last = value
        return make_id(prefix, value)
