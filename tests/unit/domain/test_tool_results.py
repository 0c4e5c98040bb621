"""What is shown of long results, and what is kept of them."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_runner.domain import tool_results as rules
from agent_runner.domain.masking import MASK, Masker
from agent_runner.domain.tool_results import LONGEST, SHOWN_OF_KEPT

SECRET = "canary-4711-ab"
BLOCKS = st.lists(
    st.sampled_from(["a", "ü", "漢", "😀", "\ud800", "line\n", SECRET[:7], SECRET, " x" * 50]),
    min_size=2,
    max_size=8,
)
FEWER = settings(max_examples=30, deadline=None)
"""Texts are long, and so each takes its time."""


def long(blocks: list[str]) -> str:
    return "".join(blocks) * (LONGEST // 8)


@FEWER
@given(BLOCKS)
def test_a_preview_is_short_and_of_the_two_ends_and_counts_what_is_between(blocks: list[str]) -> None:
    text = long(blocks) + "x" * LONGEST
    data = text.encode("utf-8", "replace")

    for most, rest in ((LONGEST, ""), (LONGEST, "they were not kept"), (SHOWN_OF_KEPT, "ask here " * 20)):
        shown = rules.preview(rules.measure(rules.pieces(text)), most, rest)

        found = re.search(r"\n\[\.\.\. (\d+) bytes left out(: .*)? \.\.\.\]\n", shown)
        assert found and (found[2] or "")[2:] == rest
        head, tail = shown[: found.start()].encode(), shown[found.end() :].encode()
        assert len(shown.encode()) <= most
        assert len(head) + len(tail) > most - 300
        assert data.startswith(head) and data.endswith(tail)
        assert int(found[1]) == len(data) - len(head) - len(tail)


@FEWER
@given(BLOCKS, st.integers(min_value=0, max_value=LONGEST * 2))
def test_what_is_kept_is_the_beginning_of_the_text_in_whole_characters(blocks: list[str], most: int) -> None:
    text = long(blocks)
    data = text.encode("utf-8", "replace")

    measured = rules.measure(rules.pieces(text), most)
    kept = b"".join(rules.kept_of(rules.pieces(text), most))

    assert data.startswith(kept)
    assert min(len(data), most) - 3 <= len(kept) <= most
    kept.decode()
    assert (measured.size, measured.kept) == (len(data), len(kept))
    assert measured.sha256 == hashlib.sha256(kept).digest()


@FEWER
@given(BLOCKS)
def test_pieces_are_the_text_masked_as_a_whole(blocks: list[str]) -> None:
    text = long(blocks)
    masker = Masker([SECRET])

    parts = list(rules.pieces(text, masker.stream()))

    assert b"".join(parts) == masker.text(text).encode("utf-8", "replace")
    assert max(len(part) for part in parts) <= 1 << 20


@FEWER
@given(st.text(), st.sampled_from([0, LONGEST - 9, LONGEST - 1, LONGEST, LONGEST // 2, LONGEST // 4]))
def test_too_long_is_what_has_more_bytes_than_an_event_may(text: str, more: int) -> None:
    text += "x" * more

    long = len(text.encode("utf-8", "replace")) > LONGEST

    assert rules.is_too_long(text) is long
    assert (rules.shortened(text) == text) is not long


def test_a_secret_at_the_border_of_a_preview_does_not_come_out_in_halves() -> None:
    text = "x" * (SHOWN_OF_KEPT // 2 - 160) + SECRET * 20000
    measured = rules.measure(rules.pieces(text, Masker([SECRET]).stream()))

    shown = rules.shown_of_kept(measured, "aex-1", "call-1")

    assert MASK in shown
    assert not any(SECRET[i : i + 5] in shown for i in range(len(SECRET) - 5))


def test_what_is_shown_says_how_to_get_the_rest() -> None:
    whole, part = (rules.measure(rules.pieces("x" * LONGEST * 2), most) for most in (1 << 30, 1000))

    assert "get all of it with: agent-runner tool-output aex-1 call-1 ...]" in rules.shown_of_kept(
        whole, "aex-1", "call-1"
    )
    assert "get the first 1000 bytes with: agent-runner" in rules.shown_of_kept(part, "aex-1", "call-1")


@pytest.mark.parametrize("name", ["it's; rm -rf /", "$(id)", "a\nb", "\x1b[31m", "x" * 5000])
def test_a_name_the_model_made_up_does_no_harm_in_a_command(name: str) -> None:
    shown = rules.shown_of_kept(rules.measure(rules.pieces("x" * LONGEST * 2)), "aex-1", name)

    command = re.findall(r"\[\.\.\. .* with: (.*) \.\.\.\]", shown)[0]
    assert len(shown) <= SHOWN_OF_KEPT
    assert re.fullmatch(r"agent-runner tool-output aex-1 (CALL|'.*')", command)
