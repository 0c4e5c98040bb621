"""Making the log of an ended execution smaller, so that whoever reads it sees the same.

Text that came in pieces is put whole into the event that ended its message, and the pieces go. So the
status is the same wherever a reader had stopped: `MessageCompleted.content` replaces what pieces it had.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agent_runner.v1.events_pb2 import ExecutionEvent

MOST_TEXT: Final = 512 << 10
"""Bytes: no event gets too large to travel."""


def compact(events: Iterable[ExecutionEvent]) -> list[ExecutionEvent]:
    """The events that are left, in order and with the `seq` they had.

    Left as they are: messages that never became whole and were kept by a cancel or a failure, messages of
    more than `MOST_TEXT` bytes, and output of tools that were cut off. The newest event always stays. The
    events given may be changed.
    """
    kept: dict[int, ExecutionEvent] = {}
    texts: dict[str, _Pieces] = {}
    outputs: dict[str, list[int]] = {}
    last = 0
    for event in events:
        kept[event.seq] = event
        last = event.seq
        match event.WhichOneof("event"):
            case "message_started":
                _begin(texts, event, kept)
            case "message_delta":
                if event.message_delta.message_id in texts:
                    texts[event.message_delta.message_id].add(event)
            case "message_completed":
                _complete(texts, event, kept)
            case "attempt_started":
                for pieces in texts.values():  # withdrawn
                    pieces.drop(kept)
                texts.clear()
            case "tool_call_output":
                outputs.setdefault(event.tool_call_output.tool_call_id, []).append(event.seq)
            case "tool_call_completed":
                _drop(kept, outputs.pop(event.tool_call_completed.tool_call_id, []))
            case "tool_call_failed" if not event.tool_call_failed.interrupted:
                _drop(kept, outputs.pop(event.tool_call_failed.tool_call_id, []))
            case "status_merged":
                texts.clear()  # a foreign runner's way to say it all again
    assert last in kept or not last
    return list(kept.values())


class _Pieces:
    """Text of one message so far."""

    def __init__(self, text: str) -> None:
        self._texts = [text]
        self._seqs: list[int] = []
        self.size = len(text.encode())

    def add(self, event: ExecutionEvent) -> None:
        self._texts.append(event.message_delta.text)
        self.size += len(event.message_delta.text.encode())
        self._seqs.append(event.seq)

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def drop(self, kept: dict[int, ExecutionEvent]) -> None:
        _drop(kept, self._seqs)


def _begin(texts: dict[str, _Pieces], event: ExecutionEvent, kept: dict[int, ExecutionEvent]) -> None:
    started = event.message_started
    before = texts.pop(started.message_id, None)
    if before is not None:  # asked again; what there was is replaced
        before.drop(kept)
    texts[started.message_id] = _Pieces(started.content)


def _complete(texts: dict[str, _Pieces], event: ExecutionEvent, kept: dict[int, ExecutionEvent]) -> None:
    completed = event.message_completed
    pieces = texts.pop(completed.message_id, None)
    if pieces is not None and pieces.size <= MOST_TEXT:
        completed.content = completed.content or pieces.text
        pieces.drop(kept)


def _drop(kept: dict[int, ExecutionEvent], seqs: Iterable[int]) -> None:
    for seq in seqs:
        del kept[seq]
