"""Keeping secrets out of what people read: events, status, logs, traces, errors, tool results.

A `Masker` knows the secrets of one execution in every shape of `encodings.forms`. What is not among
those shapes (encrypted, compressed, retold in other words) passes: masking catches accidents and the
usual encodings, it cannot hold back somebody who computes.
"""

from __future__ import annotations

import traceback
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Value

from agent_runner.domain.encodings import SHORTEST, forms
from agent_runner.v1.events_pb2 import ExecutionEvent, MessageDelta, ToolCallOutput

MASK = "********"
"""What is shown in place of a secret. A client that sends it back in an update keeps what is stored."""


class Masker:
    """Finds secrets in text and puts MASK in their place.

    Looking is a plain search per shape, which costs about 0.15 ms per shape and MiB; a compiled
    expression of all of them was measured at twenty times that.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        found = {form for secret in secrets for form in forms(secret) if form != MASK}
        self._forms = sorted(found, key=len, reverse=True)
        self._lengths = [-len(form) for form in self._forms]
        self._shortest = len(self._forms[-1]) if self._forms else 0
        self._longest = len(self._forms[0]) if self._forms else 0
        self._begins: dict[str, list[str]] = {}
        """By their first character, and by their first two."""
        for form in self._forms:
            self._begins.setdefault(form[0], []).append(form)
            self._begins.setdefault(form[:2], []).append(form)

    def __bool__(self) -> bool:
        return bool(self._forms)

    def text(self, text: str) -> str:
        """The text without the secrets; two that overlap become one MASK."""
        if not self._forms or len(text) < self._shortest:
            return text
        spans = self.spans(text)
        return _replace(text, spans) if spans else text

    def value(self, value: Any) -> Any:
        """Text anywhere in nested mappings, lists and tuples; other things stay as they are."""
        if not self._forms:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bytes):
            return self.text(value.decode(errors="surrogateescape")).encode(errors="surrogateescape")
        if isinstance(value, Mapping):
            return {self.value(key): self.value(item) for key, item in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return type(value)(self.value(item) for item in value)
        return value

    def message(self, message: Message) -> None:
        """Mask every string of a message in place, however deep, those of a Struct included."""
        if self._forms:
            _mask_message(message, self.text)

    def stream(self) -> MaskedStream:
        """For text that comes in pieces."""
        return MaskedStream(self)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where secrets are: (start, end) in order, overlapping ones joined."""
        found: list[tuple[int, int]] = []
        # Most pieces of a stream are shorter than most forms.
        for form in self._forms[bisect_left(self._lengths, -len(text)) :]:
            at = text.find(form)
            while at >= 0:
                found.append((at, at + len(form)))
                at = text.find(form, at + 1)
        return _joined(found)

    def safe_length(self, text: str) -> int:
        """How much of the beginning no secret can begin in and run on beyond the end."""
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            candidates = self._begins.get(text[at : at + 2])
            if candidates and any(_runs_on(form, text, at) for form in candidates):
                return at
        return len(text)


class MaskedStream:
    """Masks text that comes in pieces, so that a secret split over pieces is found too.

    Only what may be the beginning of a secret is held back, and never more than its longest shape.
    """

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._held = ""
        self._covered = 0
        """How many characters at the beginning of what is held a MASK already stands for."""

    def feed(self, piece: str) -> str:
        """What may be shown now; the pieces joined are the text joined and masked."""
        if not self._masker:
            return piece
        text = self._held + piece
        return self._release(text, self._masker.safe_length(text))

    def finish(self) -> str:
        """What was held back, when no more comes."""
        return self._release(self._held, len(self._held))

    def _release(self, text: str, until: int) -> str:
        if until == 0:
            self._held = text
            return ""
        spans = self._masker.spans(text) if len(text) >= SHORTEST else []
        if self._covered:
            spans = _joined([(0, self._covered), *spans])
        shown, at = [], 0
        for start, end in spans:
            if start >= until:
                break
            shown.append(text[at:start])
            if not (start == 0 and self._covered):
                shown.append(MASK)
            at = end
        shown.append(text[at:until])
        self._held, self._covered = text[until:], max(0, at - until)
        return "".join(shown)


class EventMasker:
    """Masks the events of one attempt, in the order they happen.

    Text of a message, and output of a running tool, is masked over the borders of its events.
    """

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._streams: dict[tuple[str, str], tuple[MaskedStream, str]] = {}

    def mask(self, event: ExecutionEvent) -> list[ExecutionEvent]:
        """The event as it may be shown, after what it lets go of, or nothing for now.

        The event given may be changed.
        """
        if not self._masker:
            return [event]
        kind = event.WhichOneof("event")
        if kind == "message_delta":
            return self._piece(event, ("message", event.message_delta.message_id), event.message_delta)
        if kind == "tool_call_output":
            return self._piece(event, ("call", event.tool_call_output.tool_call_id), event.tool_call_output)
        before = self._before(kind, event)
        names = _names_in(event, kind)
        self._masker.message(event)
        for part, name, value in names:
            setattr(part, name, value)
        return [*before, event]

    def end(self) -> list[ExecutionEvent]:
        """What is held back of texts that have not ended and will not."""
        return [rest for key in list(self._streams) for rest in self._rest(key, "")]

    def _piece(
        self, event: ExecutionEvent, key: tuple[str, str], piece: MessageDelta | ToolCallOutput
    ) -> list[ExecutionEvent]:
        stream, _ = self._streams.setdefault(key, (self._masker.stream(), event.sub_agent_id))
        piece.text = stream.feed(piece.text)
        return [event] if piece.text else []

    def _before(self, kind: str | None, event: ExecutionEvent) -> list[ExecutionEvent]:
        if kind in ("message_started", "message_completed"):
            return self._rest(("message", getattr(event, kind).message_id), event.time)
        if kind in ("tool_call_completed", "tool_call_failed"):
            return self._rest(("call", getattr(event, kind).tool_call_id), event.time)
        return []

    def _rest(self, key: tuple[str, str], time: str) -> list[ExecutionEvent]:
        found = self._streams.pop(key, None)
        text = found[0].finish() if found else ""
        if found is None or not text:
            return []
        event = ExecutionEvent(time=time, sub_agent_id=found[1])
        if key[0] == "message":
            event.message_delta.message_id, event.message_delta.text = key[1], text
        else:
            event.tool_call_output.tool_call_id, event.tool_call_output.text = key[1], text
        return [event]


class LiveSecrets:
    """The secrets of every execution a process holds now; masks its logs and errors."""

    def __init__(self) -> None:
        self._maskers: tuple[Masker, ...] = ()

    @contextmanager
    def hold(self, masker: Masker) -> Iterator[None]:
        """Mask with it as long as the context lasts."""
        self._maskers = (*self._maskers, masker)
        try:
            yield
        finally:
            kept = list(self._maskers)
            kept.remove(masker)
            self._maskers = tuple(kept)

    def text(self, text: str) -> str:
        for masker in self._maskers:
            text = masker.text(text)
        return text

    def __call__(
        self, _logger: object, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """As a structlog processor, to stand last but one, after tracebacks have become text."""
        if self._maskers:
            for key, value in event.items():
                event[key] = self._anything(value)
        return event

    def filter(self, record: Any) -> bool:
        """As a filter of a `logging.Handler`, for what libraries log; keeps every record."""
        if self._maskers:
            record.msg, record.args = self.text(record.getMessage()), ()
            if record.exc_info:
                record.exc_text = self.text("".join(traceback.format_exception(*record.exc_info)).rstrip())
                record.exc_info = None
        return True

    def _anything(self, value: Any) -> Any:
        if isinstance(value, BaseException):
            value = repr(value)
        for masker in self._maskers:
            value = masker.value(value)
        return value


_NAMES = ("message_id", "tool_call_id", "sub_agent_id", "execution_id", "artifact_key", "id")


def _names_in(event: ExecutionEvent, kind: str | None) -> list[tuple[Message, str, str]]:
    """What others find things by, which is of no use once it is changed.

    A call that is in the log under another id would be run again by the next attempt.
    """
    parts: list[Message] = [event, *([getattr(event, kind)] if kind else [])]
    return [
        (part, name, getattr(part, name))
        for part in parts
        for name in _NAMES
        if name in part.DESCRIPTOR.fields_by_name
    ]


def _runs_on(form: str, text: str, at: int) -> bool:
    """Whether all of the text from `at` on is the beginning of a longer form."""
    # The first characters alone settle most of it, without a copy of a long rest.
    return len(form) > len(text) - at and form.startswith(text[at : at + 16]) and form.startswith(text[at:])


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _replace(text: str, spans: list[tuple[int, int]]) -> str:
    shown, at = [], 0
    for start, end in spans:
        shown += [text[at:start], MASK]
        at = end
    return "".join([*shown, text[at:]])


def _mask_message(message: Message, mask: Callable[[str], str]) -> None:
    if isinstance(message, Value) and message.HasField("number_value"):
        _mask_number(message, mask)
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _mask_map(field, value, mask)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for one in value if field.is_repeated else (value,):
                _mask_message(one, mask)
        elif field.type == FieldDescriptor.TYPE_STRING:
            if field.is_repeated:
                value[:] = [mask(one) for one in value]
            else:
                setattr(message, field.name, mask(value))


def _mask_map(field: FieldDescriptor, items: Any, mask: Callable[[str], str]) -> None:
    assert field.message_type is not None, "a map is a message to protobuf"
    entry = field.message_type.fields_by_name["value"]
    for key in list(items):
        if entry.type == FieldDescriptor.TYPE_MESSAGE:
            _mask_message(items[key], mask)
        elif entry.type == FieldDescriptor.TYPE_STRING:
            items[key] = mask(items[key])
        shown = mask(key) if isinstance(key, str) else key
        if shown != key:
            if entry.type == FieldDescriptor.TYPE_MESSAGE:
                items[shown].CopyFrom(items[key])
            else:
                items[shown] = items[key]
            del items[key]


def _mask_number(value: Value, mask: Callable[[str], str]) -> None:
    number = value.number_value
    text = str(int(number)) if number.is_integer() else str(number)
    if mask(text) != text:
        value.string_value = MASK
