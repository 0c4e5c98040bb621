"""Compression of what checkpoints hold.

Whole message lists, which LangGraph stores every 50 updates, are two thirds of the bytes; they shrink
to a half or less at 0.4 ms per 160 kB. Small values are left alone: the key names they consist of
mostly would gain little.
"""

from __future__ import annotations

import zlib
from typing import Final

SUFFIX: Final = "+zlib"
"""Behind the name of a value's encoding when it is compressed."""

SMALLEST: Final = 2 << 10
LARGEST: Final = 4 << 20
"""Bytes. Beyond, compressing would hold up the writer thread for tens of milliseconds."""


def pack(encoding: str, value: bytes) -> tuple[str, bytes]:
    """Compress a value where that pays; its encoding says whether."""
    if not SMALLEST <= len(value) <= LARGEST:
        return encoding, value
    packed = zlib.compress(value, 1)
    return (encoding + SUFFIX, packed) if len(packed) < len(value) else (encoding, value)


def unpack(encoding: str, value: bytes) -> tuple[str, bytes]:
    """Undo `pack`."""
    if not encoding.endswith(SUFFIX):
        return encoding, value
    return encoding.removesuffix(SUFFIX), zlib.decompress(value)
