"""Pages of lists, newest first.

A page token is the id of the last resource seen. A number is taken for the number of a page, from 1,
since clients of the Stigmer API get no token and count `total_pages` instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent_runner.domain.ids import canonical_id, is_id
from agent_runner.errors import InvalidRequestError

DEFAULT_SIZE: Final = 50
MOST: Final = 500
MOST_SKIPPED: Final = 100_000
"""How far into a list a page can be asked for by number."""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which page is asked for.

    Attributes:
        size: 1 to 500.
        before: id the page begins after; None: from the newest on.
        skip: how many to leave out first.
    """

    size: int = DEFAULT_SIZE
    before: str | None = None
    skip: int = 0


def page_by_token(size: int, token: str, prefix: str) -> PageRequest:
    """A page by token; see the module.

    Args:
        size: 0 asks for 50; more than 500 gives 500.
        prefix: of the ids in the list.

    Raises:
        InvalidRequestError: the size is negative, or the token none of ours.
    """
    wanted = _size(size, "page_size")
    if not token:
        return PageRequest(wanted)
    if token.isascii() and token.isdecimal():
        return _numbered(wanted, int(token[:9]) - 1, "page_token")
    last_seen = canonical_id(token)
    if not is_id(prefix, last_seen):
        raise InvalidRequestError.of(
            "page_token", "must be the next_page_token of the answer before, or empty"
        )
    return PageRequest(wanted, before=last_seen)


def page_by_number(number: int, size: int) -> PageRequest:
    """A page by number, from 1; 0 is the first one too (`PageInfo`)."""
    return _numbered(_size(size, "page_info.size"), (number or 1) - 1, "page_info.num")


def total_pages(count: int, size: int) -> int:
    """How many pages hold `count` resources; an empty list has none."""
    return -(-count // size)


def _size(size: int, field: str) -> int:
    if size < 0:
        raise InvalidRequestError.of(field, "must not be negative", "int32.gte")
    return min(size, MOST) or DEFAULT_SIZE


def _numbered(size: int, number: int, field: str) -> PageRequest:
    if number < 0 or number * size > MOST_SKIPPED:
        raise InvalidRequestError.of(field, f"must be a page within the first {MOST_SKIPPED} resources")
    return PageRequest(size, skip=number * size)
