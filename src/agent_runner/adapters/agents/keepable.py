"""What checkpoints and events can hold of what models and tools say.

JSON allows more than they do: halves of a character, numbers of any size, nesting of any depth. And its
parsers allow NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

MOST_LEVELS: Final = 64
"""Of mappings and lists in each other."""
_MOST_INT: Final = 1 << 63


def valid_text(text: str) -> str:
    """The text as UTF-8 can carry it: two halves of a character are joined, one alone is replaced."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def is_keepable(value: Any, levels: int = MOST_LEVELS) -> bool:
    """Whether only texts of the value may have to change: see `kept`."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -_MOST_INT <= value < _MOST_INT
    if isinstance(value, Mapping):
        return levels > 0 and all(is_keepable(item, levels - 1) for item in value.values())
    if isinstance(value, (list, tuple)):
        return levels > 0 and all(is_keepable(item, levels - 1) for item in value)
    return True


def kept(value: Any, levels: int = MOST_LEVELS) -> Any:
    """The value with valid text; numbers that are not finite or beyond 64 bits, and what is nested deeper
    than `levels`, as text. What JSON does not know stays as it is."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, (int, float)):
        return value if is_keepable(value) else str(value)
    if not isinstance(value, (Mapping, list, tuple)):
        return value
    if levels == 0:
        return _as_text(value)
    if isinstance(value, Mapping):
        return {kept(key): kept(item, levels - 1) for key, item in value.items()}
    return [kept(item, levels - 1) for item in value]


def _as_text(value: Any) -> str:
    try:
        return json.dumps(value, default=str)
    except (ValueError, TypeError, RecursionError):
        return f"({type(value).__name__})"
