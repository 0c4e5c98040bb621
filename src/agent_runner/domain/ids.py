"""Ids of resources: `{prefix}-{ulid}`, in lower case, sorting by time of creation."""

from __future__ import annotations

import re
from typing import Final

_CROCKFORD: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS: Final = tuple(a + b for a in _CROCKFORD for b in _CROCKFORD)
_SUFFIX: Final = re.compile(r"[0-9a-z](?:[0-9a-z.-]{0,61}[0-9a-z])?")

RANDOM_BITS: Final = 80


def ulid(value: int) -> str:
    """26 characters for a number of up to 128 bits: 48 bits of milliseconds, then 80 random ones."""
    pairs = _PAIRS
    return "".join([pairs[(value >> shift) & 1023] for shift in range(120, -1, -10)])


def make_id(prefix: str, value: int) -> str:
    return f"{prefix}-{ulid(value)}"


def canonical_id(text: str) -> str:
    """An id as it is stored: `_` is accepted for `-`, case and surrounding blanks do not matter."""
    return text.strip().lower().replace("_", "-")


def is_id(prefix: str, text: str) -> bool:
    """Whether a canonical text can be an id of the kind. Ids clients choose need not be ULIDs."""
    head, dash, rest = text.partition("-")
    return head == prefix and bool(dash) and _SUFFIX.fullmatch(rest) is not None


def suffix(resource_id: str) -> str:
    """What follows the prefix."""
    return resource_id.partition("-")[2]
