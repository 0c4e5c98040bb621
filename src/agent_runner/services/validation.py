"""Checks requests against the rules in the protos, and says what is wrong in the fields' own names."""

from __future__ import annotations

from typing import Any, Final

import protovalidate
from google.protobuf.message import Message

from agent_runner.errors import InvalidRequestError, Violation

MOST_BYTES: Final = 8 << 20
"""The most bytes a stored resource may have."""


def validate(request: Message) -> None:
    """Check a request.

    Raises:
        InvalidRequestError: every field that is wrong, by its path: `spec.skill_refs[2].kind`.
    """
    found = protovalidate.collect_violations(request)
    if found:
        raise InvalidRequestError([_violation(violation.proto) for violation in found])


def validate_size(request: Message, most: int = MOST_BYTES) -> None:
    """Refuse what is too large to be kept.

    Raises:
        InvalidRequestError: it is.
    """
    size = request.ByteSize()
    if size > most:
        raise InvalidRequestError.of(
            "request", f"has {size} bytes; at most {most} can be stored", "message.max_bytes"
        )


def _violation(proto: Any) -> Violation:
    path = "".join(_element(element) for element in proto.field.elements) if proto.field else ""
    return Violation(path.removeprefix(".") or "request", proto.message or proto.rule_id, proto.rule_id)


def _element(element: Any) -> str:
    subscript = element.subscript
    if subscript is None:
        return f".{element.field_name}"
    key = f'"{subscript.value}"' if subscript.field == "string_key" else str(subscript.value).lower()
    return f".{element.field_name}[{key}]"
