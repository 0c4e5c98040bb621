"""The chat template the small model needs: its own, with calls as it writes them.

Qwen2.5-Coder writes tool calls into JSON fences, whatever its template says, and llama.cpp learns from
the template how to find them: with the stock one no call is ever found. The nudge after the last result
keeps it from repeating the call for ever.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from agent_runner.errors import FailedPreconditionError

_KEY = b"tokenizer.chat_template"
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

_NUDGE = (
    "If this completes the request, answer the user now in plain words without a code block. "
    "Otherwise call the next tool."
)

# Text of the stock template to what stands there instead; each is there exactly once.
_REPLACED = (
    (
        "within <tool_call></tool_call> XML tags:\\n<tool_call>\\n"
        '{{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}}\\n</tool_call>',
        "in a json code block:\\n```json\\n"
        '{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n```',
    ),
    ('\'\\n<tool_call>\\n{"name": "\'', '\'\\n```json\\n{"name": "\''),
    ("'}\\n</tool_call>'", "'}\\n```'"),
    (
        "{{- '\\n</tool_response>' }}\n",
        "{{- '\\n</tool_response>' }}\n        {%- if loop.last %}\n"
        f"            {{{{- '\\n{_NUDGE}' }}}}\n        {{%- endif %}}\n",
    ),
)


def fenced(template: str) -> str:
    """The template with calls in JSON fences.

    Raises:
        FailedPreconditionError: it is not the template this was written for.
    """
    for old, new in _REPLACED:
        if template.count(old) != 1:
            raise FailedPreconditionError("The model's file has another chat template than expected.")
        template = template.replace(old, new)
    return template


def stock_template(path: Path) -> str:
    """The chat template in a GGUF file.

    Raises:
        FailedPreconditionError: it is no such file, or has none.
    """
    try:
        with path.open("rb") as file:
            found = _find(file)
    except (struct.error, KeyError, UnicodeDecodeError):
        found = None
    if found is None:
        raise FailedPreconditionError(f"{path} is not a model's file with a chat template.")
    return found


def _find(file: BinaryIO) -> str | None:
    if file.read(4) != b"GGUF":
        return None
    _version, _tensors, entries = struct.unpack("<IQQ", file.read(20))
    for _ in range(entries):
        key = _text(file)
        (kind,) = struct.unpack("<I", file.read(4))
        value = _value(file, kind)
        if key == _KEY and isinstance(value, bytes):
            return value.decode("utf-8")
    return None


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        return file.read(_SIZES[kind])
    inner, count = struct.unpack("<IQ", file.read(12))
    if inner in _SIZES:
        file.seek(_SIZES[inner] * count, 1)
    else:
        for _ in range(count):
            _value(file, inner)
    return None


def _text(file: BinaryIO) -> bytes:
    (length,) = struct.unpack("<Q", file.read(8))
    return file.read(length)
