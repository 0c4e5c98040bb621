"""Pages."""

from __future__ import annotations

import pytest

from agent_runner.domain.paging import PageRequest, page_by_number, page_by_token, total_pages
from agent_runner.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("size", "token", "page"),
    [
        (0, "", PageRequest(50)),
        (10, "", PageRequest(10)),
        (9999, "", PageRequest(500)),
        (10, "aex_01", PageRequest(10, before="aex-01")),
        (10, "1", PageRequest(10)),
        (10, "3", PageRequest(10, skip=20)),
    ],
)
def test_pages_by_token(size: int, token: str, page: PageRequest) -> None:
    assert page_by_token(size, token, "aex") == page


@pytest.mark.parametrize(
    ("size", "token"), [(-1, ""), (0, "x"), (0, "ses-01"), (0, "0"), (0, "9" * 40), (0, "²"), (0, "aex-\x00")]
)
def test_wrong_pages_are_told(size: int, token: str) -> None:
    with pytest.raises(InvalidRequestError, match="page"):
        page_by_token(size, token, "aex")


def test_pages_by_number_begin_with_one_and_nought_is_the_first() -> None:
    assert page_by_number(0, 0) == page_by_number(1, 0) == PageRequest(50)
    assert page_by_number(3, 20) == PageRequest(20, skip=40)
    with pytest.raises(InvalidRequestError, match=r"page_info\.num"):
        page_by_number(-1, 0)


def test_total_pages() -> None:
    assert [total_pages(count, 10) for count in (0, 1, 10, 11)] == [0, 1, 1, 2]
