"""Results of tools that are too long for an event: what is shown of them, and what is kept.

The whole text is never encoded or masked at once: it is walked through in pieces, once to measure it and
once to send it, which gives the same bytes both times.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

LONGEST: Final = 256 << 10
"""Bytes of a result in an event; the rule of `events.proto`."""
MOST_KEPT: Final = 64 << 20
"""Bytes kept of one result; the rule of `runner_service.proto`."""
SHOWN_OF_KEPT: Final = 16 << 10
"""Bytes shown of a result that is kept elsewhere: statuses stay small, however many there are."""
_SLICE: Final = 48 << 10
"""Characters of one piece; at most 192 KiB, and what masking adds."""
_LINE: Final = 80
_LONGEST_NAME: Final = 200


class Stream(Protocol):
    """Takes secrets out of text that comes in pieces; `MaskedStream` is one."""

    def feed(self, piece: str) -> str: ...

    def finish(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Measured:
    """A text that was walked through.

    Attributes:
        size: bytes of all of it.
        kept: bytes of what is kept, from the beginning; fewer where it is longer than that.
        sha256: of what is kept.
        head, tail: up to LONGEST / 2 bytes of its two ends; a character may be cut in two.
    """

    size: int
    kept: int
    sha256: bytes
    head: bytes = field(repr=False)
    tail: bytes = field(repr=False)


def is_too_long(text: str) -> bool:
    """Whether a text has more than LONGEST bytes."""
    return len(text) > LONGEST or (4 * len(text) > LONGEST and len(text.encode("utf-8", "replace")) > LONGEST)


def pieces(text: str, stream: Stream | None = None) -> Iterator[bytes]:
    """The text in UTF-8, masked by the stream; no character lies in two pieces."""
    for start in range(0, len(text), _SLICE):
        part = text[start : start + _SLICE]
        if stream is not None:
            part = stream.feed(part)
        if part:
            yield part.encode("utf-8", "replace")
    if stream is not None and (rest := stream.finish()):
        yield rest.encode("utf-8", "replace")


def measure(parts: Iterable[bytes], most_kept: int = MOST_KEPT) -> Measured:
    """Walk through a text; no character may lie in two parts."""
    size = kept = 0
    digest, whole = hashlib.sha256(), True
    half = LONGEST // 2
    head, tail = bytearray(), bytearray()
    for part in parts:
        size += len(part)
        head += part[: half - len(head)]
        tail = (tail + part)[-half:]
        if whole:
            fitting = _fitting(part, most_kept - kept)
            whole = len(fitting) == len(part)
            kept += len(fitting)
            digest.update(fitting)
    return Measured(size, kept, digest.digest(), bytes(head), bytes(tail))


def kept_of(parts: Iterable[bytes], most_kept: int = MOST_KEPT) -> Iterator[bytes]:
    """What is kept of a text, as `measure` counts it."""
    for part in parts:
        fitting = _fitting(part, most_kept)
        if fitting:
            yield fitting
        if len(fitting) < len(part):
            return
        most_kept -= len(fitting)


def preview(measured: Measured, most: int, rest: str = "") -> str:
    """At most `most` bytes of a longer text: its beginning, its end, and between them what is left out.

    Args:
        rest: where what is left out can be found, or why it cannot; far shorter than `most`.
    """
    half = (most - _LINE - len(rest.encode("utf-8", "replace"))) // 2
    head, tail = (end.decode("utf-8", "ignore") for end in (measured.head[:half], measured.tail[-half:]))
    left_out = measured.size - len(head.encode()) - len(tail.encode())
    return f"{head}\n[... {left_out} bytes left out{f': {rest}' if rest else ''} ...]\n{tail}"


def shortened(text: str) -> str:
    """At most LONGEST bytes of a text: its beginning, its end, and how much is left out."""
    return preview(measure(pieces(text)), LONGEST) if is_too_long(text) else text


def shown_of_kept(measured: Measured, execution_id: str, tool_call_id: str) -> str:
    """What is shown of a result that is kept: its ends, and how to get the rest."""
    call = shlex.quote(tool_call_id) if _is_plain(tool_call_id) else "CALL"
    command = f"agent-runner tool-output {execution_id} {call}"
    what = "all of it" if measured.kept == measured.size else f"the first {measured.kept} bytes"
    return preview(measured, SHOWN_OF_KEPT, f"get {what} with: {command}")


def _is_plain(name: str) -> bool:
    return len(name) <= _LONGEST_NAME and name.isprintable()


def _fitting(part: bytes, room: int) -> bytes:
    """As much as fits, in whole characters."""
    return part if len(part) <= room else part[:room].decode("utf-8", "ignore").encode()
