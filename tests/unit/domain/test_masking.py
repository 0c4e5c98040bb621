"""Secrets do not come out, in any usual shape and however the text is cut."""

from __future__ import annotations

import base64
import codecs
import io
import json
import logging
import re
import shlex
import sys
import urllib.parse
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runner.domain.masking import MASK, EventMasker, LiveSecrets, Masker
from agent_runner.v1.events_pb2 import ExecutionEvent, SteeringJoined, ToolCallStarted

SECRET = "canary-Zq8+/w'7&xÄ=42"
RAW = SECRET.encode()

SHAPES: dict[str, Callable[[], str]] = {
    "itself": lambda: SECRET,
    "base64": lambda: base64.b64encode(RAW).decode(),
    "base64 inside something": lambda: base64.b64encode(b"user:" + RAW + b"@host").decode(),
    "base64 one byte on": lambda: base64.b64encode(b"u" + RAW + b"\n").decode(),
    "base64 two bytes on": lambda: base64.b64encode(b"us" + RAW + b"\n").decode(),
    "base64 for addresses": lambda: base64.urlsafe_b64encode(b"x:" + RAW).decode().rstrip("="),
    "base64 reversed": lambda: base64.b64encode(RAW).decode()[::-1],
    "base32": lambda: base64.b32encode(RAW).decode(),
    "hexadecimal": lambda: RAW.hex(),
    "hexadecimal, upper": lambda: RAW.hex().upper(),
    "hexadecimal, spaced": lambda: RAW.hex(" "),
    "hexadecimal, colons": lambda: RAW.hex(":").upper(),
    "escaped bytes": lambda: "".join(f"\\x{byte:02x}" for byte in RAW),
    "list of bytes": lambda: str(list(RAW)),
    "bits": lambda: "".join(f"{byte:08b}" for byte in RAW),
    "octal": lambda: "".join(f"\\{byte:03o}" for byte in RAW),
    "address part": lambda: urllib.parse.quote(SECRET),
    "address part, strict": lambda: urllib.parse.quote(SECRET, safe=""),
    "form": lambda: urllib.parse.urlencode({"k": SECRET}),
    "percent, lower": lambda: re.sub(r"%..", lambda m: m[0].lower(), urllib.parse.quote(SECRET, safe="")),
    "percent, every byte": lambda: "".join(f"%{byte:02X}" for byte in RAW),
    "JSON": lambda: json.dumps({"k": SECRET}),
    "JSON in JSON": lambda: json.dumps(json.dumps([SECRET])),
    "Python": lambda: repr([SECRET]),
    "shell": lambda: shlex.quote(SECRET),
    "HTML": lambda: SECRET.replace("&", "&amp;").replace("'", "&#x27;"),
    "unicode escapes": lambda: "".join(f"\\u{ord(char):04x}" for char in SECRET),
    "reversed": lambda: SECRET[::-1],
    "upper": lambda: SECRET.upper(),
    "rotated": lambda: codecs.encode(SECRET, "rot13"),
    "spelled": lambda: " ".join(SECRET),
    "a character a line": lambda: "\n".join(SECRET),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_secret_is_found_in_every_usual_shape(shape: str) -> None:
    masked = Masker([SECRET]).text(f"before {SHAPES[shape]()} after")

    assert MASK in masked
    assert SHAPES[shape]() not in masked
    assert masked.startswith("before ")
    assert masked.endswith(" after")


def test_each_line_of_a_secret_of_many_lines_is_masked() -> None:
    lines = ("BEGIN KEY", "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC", "BKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj", "END KEY!")
    key = "\n".join(lines)

    masked = Masker([key]).text("grep found: BKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\r\n" + key)

    assert masked == f"grep found: {MASK}\r\n{MASK}"


def test_base64_of_a_long_secret_is_found_over_its_line_breaks() -> None:
    secret = "".join(chr(33 + i * 7 % 90) for i in range(150))

    masked = Masker([secret]).text(base64.encodebytes(secret.encode()).decode())

    assert masked.strip() == MASK


def test_secrets_of_fewer_than_six_characters_are_left() -> None:
    assert Masker(["true", "1", ""]).text("true 1") == "true 1"


def test_two_secrets_that_overlap_leave_nothing_of_either() -> None:
    assert Masker(["abcdef1234", "1234uvwxyz"]).text("<abcdef1234uvwxyz>") == f"<{MASK}>"


SECRETS = st.lists(st.text(alphabet="ab", min_size=6, max_size=9), min_size=1, max_size=3)
PIECES = st.lists(st.text(alphabet="abc", max_size=12), max_size=12)


@given(SECRETS, PIECES)
def test_pieces_joined_are_the_whole_masked(secrets: list[str], pieces: list[str]) -> None:
    masker = Masker(secrets)
    stream = masker.stream()

    shown = "".join([*(stream.feed(piece) for piece in pieces), stream.finish()])

    assert shown == masker.text("".join(pieces))


@given(st.integers(1, len(SECRET) - 1))
def test_a_secret_cut_anywhere_is_found(cut: int) -> None:
    stream = Masker([SECRET]).stream()

    shown = stream.feed(f"x {SECRET[:cut]}") + stream.feed(f"{SECRET[cut:]} y") + stream.finish()

    assert shown == f"x {MASK} y"


def test_a_shorter_secret_does_not_let_the_rest_of_a_longer_one_out() -> None:
    stream = Masker(["abcdef", "abcdef-and-more"]).stream()

    assert stream.feed("abcdef") + stream.feed("-and-more") + stream.finish() == MASK


def test_text_without_the_beginning_of_a_secret_is_not_held_back() -> None:
    stream = Masker(["zzyyxxww"]).stream()

    assert stream.feed("Hello") == "Hello"
    assert stream.feed(" zz") == " "
    assert stream.feed("y!") == "zzy!"


def message(message_id: str, text: str) -> ExecutionEvent:
    event = ExecutionEvent(time="t")
    event.message_delta.message_id, event.message_delta.text = message_id, text
    return event


def test_a_secret_split_over_the_deltas_of_a_message_is_masked_before_the_message_ends() -> None:
    masker = EventMasker(Masker(["topsecret"]))
    done = ExecutionEvent()
    done.message_completed.message_id = "m"

    shown = [e for text in ("a top", "sec", "ret b top") for e in masker.mask(message("m", text))]
    end = masker.mask(done)

    assert "".join(e.message_delta.text for e in shown) == f"a {MASK} b "
    assert [e.WhichOneof("event") for e in end] == ["message_delta", "message_completed"]
    assert end[0].message_delta.text == "top"


def test_messages_side_by_side_do_not_mix() -> None:
    masker = EventMasker(Masker(["topsecret"]))

    shown = [e for pair in (("m", "top"), ("n", "sec"), ("m", "ha!")) for e in masker.mask(message(*pair))]

    assert [(e.message_delta.message_id, e.message_delta.text) for e in shown] == [
        ("n", "sec"),
        ("m", "topha!"),
    ]


def test_what_is_held_back_comes_before_the_end_of_its_call_or_when_all_breaks_off() -> None:
    masker = EventMasker(Masker(["topsecret"]))
    output, end = ExecutionEvent(sub_agent_id="s"), ExecutionEvent()
    output.tool_call_output.tool_call_id, output.tool_call_output.text = "c", "top"
    end.tool_call_failed.tool_call_id, end.tool_call_failed.error = "c", "It said topsecret."

    assert masker.mask(output) == []
    rest, ended = masker.mask(end)
    assert (rest.tool_call_output.text, rest.sub_agent_id) == ("top", "s")
    assert ended.tool_call_failed.error == f"It said {MASK}."

    assert masker.mask(message("m", "tops")) == []
    assert [event.message_delta.text for event in masker.end()] == ["tops"]
    assert masker.end() == []


def test_arguments_of_a_tool_are_masked_in_depth() -> None:
    event = ExecutionEvent()
    event.tool_call_started.name = "send"
    event.tool_call_started.args.update(
        {"body": {"list": ["x topsecret", 3, True, {"topsecret": 12345678}]}, "topsecret": "y"}
    )

    (shown,) = EventMasker(Masker(["topsecret", "12345678"])).mask(event)

    assert json.loads(json.dumps(_plain(shown))) == {
        "body": {"list": [f"x {MASK}", 3.0, True, {MASK: MASK}]},
        MASK: "y",
    }


def _plain(event: ExecutionEvent) -> object:
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(event.tool_call_started.args)


def test_todos_and_every_other_text_of_an_event_are_masked() -> None:
    event = ExecutionEvent()
    event.todos_changed.todos.add(id="1", content="use topsecret")

    (shown,) = EventMasker(Masker(["topsecret"])).mask(event)

    assert shown.todos_changed.todos[0].content == f"use {MASK}"


def test_logs_are_masked_while_the_secret_is_held() -> None:
    live, masker = LiveSecrets(), Masker(["topsecret"])
    entry = {"event": "it failed", "error": ValueError("topsecret"), "more": {"k": ["topsecret"]}}

    with live.hold(masker):
        shown = live(None, "info", dict(entry))

    assert shown == {"event": "it failed", "error": f"ValueError('{MASK}')", "more": {"k": [MASK]}}
    assert live(None, "info", dict(entry)) == entry


def test_logs_of_libraries_are_masked_with_their_tracebacks() -> None:
    live, written = LiveSecrets(), io.StringIO()
    handler = logging.StreamHandler(written)
    handler.addFilter(live.filter)
    logger = logging.Logger("library")
    logger.addHandler(handler)

    with live.hold(Masker(["topsecret"])):
        try:
            raise ValueError("no topsecret here")
        except ValueError:
            logger.exception("call with %s", "topsecret")

    assert "topsecret" not in written.getvalue()
    assert f"call with {MASK}" in written.getvalue()
    assert f"ValueError: no {MASK} here" in written.getvalue()


def test_nothing_is_copied_or_searched_without_secrets() -> None:
    event = message("m", "text")

    assert EventMasker(Masker([])).mask(event)[0] is event
    assert sys.getrefcount(event) > 1


def test_what_events_are_found_by_stays_as_it_is() -> None:
    masker = EventMasker(Masker(["call_1", "msg-17", "aex-17"]))
    started = ToolCallStarted(tool_call_id="call_1", name="call_1", message_id="msg-17")
    [shown] = masker.mask(ExecutionEvent(sub_agent_id="call_1", tool_call_started=started))
    assert (shown.sub_agent_id, shown.tool_call_started.tool_call_id) == ("call_1", "call_1")
    assert (shown.tool_call_started.message_id, shown.tool_call_started.name) == ("msg-17", MASK)
    [joined] = masker.mask(ExecutionEvent(steering_joined=SteeringJoined(execution_id="aex-17")))
    assert joined.steering_joined.execution_id == "aex-17"
