"""Ids."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runner.domain.ids import canonical_id, is_id, make_id, suffix, ulid
from agent_runner.services._clocks import IdSource

NUMBERS = st.integers(min_value=0, max_value=2**128 - 1)


@given(NUMBERS, NUMBERS)
def test_ids_sort_as_their_numbers(one: int, two: int) -> None:
    assert (ulid(one) < ulid(two)) == (one < two)
    assert len(ulid(one)) == 26


def test_a_known_ulid() -> None:
    assert ulid(0) == "0" * 26
    assert ulid(2**128 - 1) == "7" + "z" * 25


def test_ids_are_read_with_underscores_and_capitals() -> None:
    made = make_id("agt", 12345)
    assert canonical_id(f" {made.upper().replace('-', '_')} ") == made
    assert is_id("agt", made)
    assert suffix(made) == made[4:]


@pytest.mark.parametrize(
    "text", ["", "agt", "agt-", "ses-01", "agt-\x00", "agt-a/b", "agt--a-", "agt-" + "a" * 64]
)
def test_what_is_no_id(text: str) -> None:
    assert not is_id("agt", text)


def test_ids_made_in_one_millisecond_sort_in_the_order_they_were_made() -> None:
    source = IdSource(lambda: datetime(2026, 1, 1, tzinfo=UTC))
    made = [source("aex") for _ in range(1000)]
    assert made == sorted(set(made))


def test_ids_keep_their_order_when_the_clock_goes_back() -> None:
    times = iter([datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)])
    source = IdSource(lambda: next(times))
    assert source("aex") < source("aex")
