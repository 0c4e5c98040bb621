"""Slugs: names made fit for references. (Rule of the Stigmer server; the limits are ours.)"""

from __future__ import annotations

import re
from typing import Final

MOST_CHARACTERS: Final = 250

_DROPPED: Final = re.compile(r"[^a-z0-9-]+")
_HYPHENS: Final = re.compile(r"-{2,}")
_SLUG: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


def slug_of(name: str) -> str:
    """The slug of a name; empty when the name has no letter or digit of ASCII."""
    lowered = _DROPPED.sub("", name.lower().replace(" ", "-"))
    return _HYPHENS.sub("-", lowered).strip("-")


def is_slug(text: str) -> bool:
    """Whether a slug a client chose can be kept as it is."""
    return len(text) <= MOST_CHARACTERS and _SLUG.fullmatch(text) is not None
