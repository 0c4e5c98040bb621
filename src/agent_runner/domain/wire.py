"""What leaves for those who know the Stigmer API alone."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)
FIRST_OWN_FIELD = 1000
"""Fields numbered from here on are ours; a decoder of the Stigmer API refuses them."""


def strip_own_fields(message: Message) -> None:
    """Clear, in place, every field numbered from 1000 on, at any depth."""
    if not _may_hold_own(message.DESCRIPTOR):
        return
    for field, value in message.ListFields():
        if field.number >= FIRST_OWN_FIELD:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for item in _items(field, value):
                strip_own_fields(item)


def without_own_fields(message: M) -> M:
    """A copy without any field numbered from 1000 on."""
    copy = type(message)()
    copy.CopyFrom(message)
    strip_own_fields(copy)
    return copy


def _items(field: FieldDescriptor, value: Any) -> Iterable[Message]:
    """The messages a set field holds: itself, its elements, or the values of a map."""
    assert field.message_type is not None
    if field.message_type.GetOptions().map_entry:
        of_messages = field.message_type.fields_by_name["value"].message_type is not None
        return value.values() if of_messages else ()
    return value if field.is_repeated else (value,)


@lru_cache
def _may_hold_own(descriptor: Descriptor) -> bool:
    """Whether such a message can hold a field of ours, itself or inside."""
    seen: set[str] = set()
    waiting = [descriptor]
    while waiting:
        current = waiting.pop()
        if current.full_name in seen:
            continue
        seen.add(current.full_name)
        if any(field.number >= FIRST_OWN_FIELD for field in current.fields):
            return True
        waiting += [field.message_type for field in current.fields if field.message_type is not None]
    return False
