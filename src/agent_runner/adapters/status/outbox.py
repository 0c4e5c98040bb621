"""Events on their way out: in order, few and small, whatever comes in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from agent_runner.v1.events_pb2 import ExecutionEvent, MessageDelta

MOST_BATCH_BYTES = 768 << 10
"""Of one append, so that no message on the wire passes 1 MiB."""
MOST_BATCH_EVENTS = 1000
_MOST_TEXT = 192 << 10
"""Characters of one event; longer text goes in several."""
_KEPT_OUTPUT = 64 << 10
"""Characters of output of a running tool that are kept while nothing can be sent; the result is whole."""
_URGENT = frozenset(
    (
        "phase_changed",
        "approval_asked",
        "approval_resolved",
    )
)


class _Entry:
    """One event to be, and the pieces of text that were added to it."""

    __slots__ = ("event", "pieces", "size")

    def __init__(self, event: ExecutionEvent) -> None:
        self.event = event
        self.pieces: list[str] = []
        self.size = 0

    def add(self, text: str) -> None:
        self.pieces.append(text)
        self.size += len(text)

    def finished(self) -> ExecutionEvent:
        if self.pieces:
            kind = self.event.WhichOneof("event")
            assert kind is not None
            getattr(self.event, kind).text = "".join(self.pieces)
        return self.event


class Outbox:
    """Queue of events in which text that follows text of the same message joins it.

    Text of several messages between two other events is joined too, each with its own: their order
    among each other says nothing. So what waits is bounded by the messages and boundaries there are,
    not by the number of tokens. Nothing is dropped but the middle of long output of running tools.
    """

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque()
        self._texts: dict[tuple[str, str], _Entry] = {}
        self._put = 0
        self.urgent = False
        """Whether something waits that should leave at once."""
        self.soon = False
        """Whether the beginning of a message waits: the first words of an answer are what people wait for."""

    def __bool__(self) -> bool:
        return bool(self._entries)

    @property
    def waiting(self) -> int:
        """Events that would leave now."""
        return len(self._entries)

    def put(self, event: ExecutionEvent) -> int:
        """Take an event; returns how many events must be stored for this one to be."""
        kind = event.WhichOneof("event")
        if kind == "message_delta":
            return self._put_text(
                ("message", event.message_delta.message_id), event, event.message_delta.text
            )
        if kind == "tool_call_output":
            return self._put_output(event)
        self._texts.clear()
        self.urgent = self.urgent or kind in _URGENT
        self.soon = self.soon or kind == "message_started"
        if kind == "message_started" and len(event.message_started.content) > _MOST_TEXT:
            return self._put_long_message(event)
        return self._append(_Entry(event))

    def take(self, most_events: int = MOST_BATCH_EVENTS) -> Sequence[ExecutionEvent]:
        """The next batch, oldest first, of at most about `MOST_BATCH_BYTES`."""
        batch: list[ExecutionEvent] = []
        size = 0
        while self._entries and len(batch) < most_events:
            event = self._entries[0].finished()
            size += event.ByteSize()
            if batch and size > MOST_BATCH_BYTES:
                break
            batch.append(event)
            self._entries.popleft()
        # Text must not join an event that has left, or that was measured.
        self._texts.clear()
        if not self._entries:
            self.urgent, self.soon = False, False
        return batch

    def peek(self) -> Iterator[ExecutionEvent]:
        """What waits, in order."""
        self._texts.clear()
        return (entry.finished() for entry in self._entries)

    def _append(self, entry: _Entry) -> int:
        self._entries.append(entry)
        self._put += 1
        return self._put

    def _put_text(self, key: tuple[str, str], event: ExecutionEvent, text: str) -> int:
        if len(text) > _MOST_TEXT:
            for start in range(0, len(text), _MOST_TEXT):
                part = ExecutionEvent()
                part.CopyFrom(event)
                part.message_delta.text = text[start : start + _MOST_TEXT]
                self._append(_Entry(part))
            self._texts.pop(key, None)
            return self._put
        known = self._texts.get(key)
        if known is None or known.size + len(text) > _MOST_TEXT:
            known = self._texts[key] = _Entry(event)
            self._append(known)
        known.add(text)
        return self._put

    def _put_output(self, event: ExecutionEvent) -> int:
        key, text = ("output", event.tool_call_output.tool_call_id), event.tool_call_output.text
        known = self._texts.get(key)
        if known is None:
            known = self._texts[key] = _Entry(event)
            self._append(known)
        known.add(text)
        if known.size > 2 * _KEPT_OUTPUT:
            kept = "".join(known.pieces)[-_KEPT_OUTPUT:]
            known.pieces, known.size = [kept], len(kept)
        return self._put

    def _put_long_message(self, event: ExecutionEvent) -> int:
        started = event.message_started
        content, started.content = started.content, started.content[:_MOST_TEXT]
        self._append(_Entry(event))
        rest = ExecutionEvent(
            time=event.time,
            sub_agent_id=event.sub_agent_id,
            message_delta=MessageDelta(message_id=started.message_id),
        )
        return self._put_text(("message", started.message_id), rest, content[_MOST_TEXT:])
