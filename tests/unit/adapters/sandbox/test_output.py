"""Output within bounds, and seen live."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent_runner.adapters.sandbox.commands import EndMark
from agent_runner.adapters.sandbox.output import BoundedOutput, LiveOutput


@given(st.lists(st.binary(max_size=40)), st.integers(0, 60))
def test_what_fits_is_kept_whole_and_of_the_rest_both_ends(pieces: list[bytes], limit: int) -> None:
    kept = BoundedOutput(limit)
    for piece in pieces:
        kept.add(piece)
    whole = b"".join(pieces)

    assert kept.truncated == (len(whole) > limit)
    if len(whole) <= limit:
        assert kept.value() == whole
    else:
        head, tail = limit - limit // 2, limit // 2
        assert kept.value().startswith(whole[:head])
        assert kept.value().endswith(whole[len(whole) - tail :])
        assert f"{len(whole) - limit} bytes".encode() in kept.value()


@given(st.text(), st.integers(1, 5))
def test_characters_cut_between_reads_are_joined_again(text: str, size: int) -> None:
    seen: list[str] = []
    stream = LiveOutput(seen.append, 1 << 20).stream()
    data = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
    for start in range(0, len(data), size):
        stream.add(data[start : start + size])
    stream.close()

    assert "".join(seen) == data.decode()


def test_a_flood_is_shown_up_to_the_limit_with_one_note() -> None:
    seen: list[str] = []
    stream = LiveOutput(seen.append, 100).stream()
    for _ in range(1000):
        stream.add(b"x" * 10)

    assert "".join(seen).count("x") == 100
    assert len([text for text in seen if "not shown" in text]) == 1


@given(st.binary(), st.integers(0, 255), st.integers(1, 7))
def test_the_mark_of_the_end_is_found_however_it_is_cut(output: bytes, code: int, size: int) -> None:
    end = EndMark("token")
    data = output + b"@@token:%d@@" % code + b"what came later"
    found = b"".join(end.feed(data[start : start + size]) for start in range(0, len(data), size))

    assert (found, end.code) == (output, code)


@given(st.binary())
def test_nothing_but_a_part_of_the_mark_is_held_back(output: bytes) -> None:
    end = EndMark("token")
    shown = end.feed(output)

    assert output.startswith(shown)
    assert b"@@token:".startswith(output[len(shown) :]) or b"@@token:" in output
