from __future__ import annotations

import json
import math
from typing import Any

import ormsgpack
import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import example, given
from hypothesis import strategies as st

from agent_runner.adapters.agents.keepable import is_keepable, kept, valid_text

ODD: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=())), inner),
)


@given(ODD)
@example(json.loads("[" * 200 + "]" * 200))
@example(json.loads('{"a":' * 200 + "1" + "}" * 200))
def test_what_is_kept_goes_into_checkpoints_events_and_json(value: Any) -> None:
    whole = kept({"value": value})
    ormsgpack.packb(whole)
    struct = Struct()
    struct.update(kept(whole, 20))
    Struct.FromString(struct.SerializeToString())
    json.dumps(whole, allow_nan=False)
    assert is_keepable(whole)


def test_halves_of_a_character_are_joined_and_one_alone_is_replaced() -> None:
    assert valid_text("a\ud83d\ude00b") == "a\U0001f600b"
    assert valid_text("\ude00 \ud83d") == "\ufffd \ufffd"
    assert valid_text("plain ä \U0001f600") == "plain ä \U0001f600"


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63) - 1, math.nan, -math.inf, [[[1]]]])
def test_what_cannot_be_kept_becomes_text(value: Any) -> None:
    assert not is_keepable([value], 3)
    assert isinstance(_innermost(kept([value], 3)), str)


def _innermost(value: Any) -> Any:
    return _innermost(value[0]) if isinstance(value, list) else value
