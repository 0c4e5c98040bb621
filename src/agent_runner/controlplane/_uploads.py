"""Uploads as they come in: a header first, then pieces. Each message has the fields `header` and `chunk`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from agent_runner.errors import InvalidRequestError, UnavailableError
from agent_runner.services.validation import validate

_LONGEST_PAUSE: Final = timedelta(seconds=60)
"""Between two pieces."""
_DRAIN: Final = timedelta(seconds=3)


async def parts_of(requests: AsyncIterator[bytes], kind: type[Message]) -> AsyncIterator[Any]:
    """Headers and pieces, in the order they come."""
    while True:
        try:
            async with asyncio.timeout(_LONGEST_PAUSE.total_seconds()):
                request = await anext(requests, None)
        except TimeoutError:
            raise UnavailableError("The upload paused for too long. Begin again.") from None
        if request is None:
            return
        message = parsed(kind, request)
        yield message.header if message.HasField("header") else message.chunk


async def header_of(parts: AsyncIterator[Any]) -> Any:
    """The first part, which must be the header."""
    header = await anext(parts, None)
    if not isinstance(header, Message):
        raise InvalidRequestError.of("header", "must come first")
    return header


async def chunks_of(parts: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """The pieces that follow the header."""
    async for part in parts:
        if isinstance(part, Message):
            raise InvalidRequestError.of("header", "must come once")
        yield part


async def drain(requests: AsyncIterator[bytes]) -> None:
    """Take what is on its way: a client whose write fails may not see why the call was ended."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN.total_seconds()):
            async for _ in requests:
                continue


def parsed(kind: Any, raw: bytes) -> Any:
    """The message of that kind, valid."""
    try:
        message = kind.FromString(raw)
    except DecodeError:
        name = kind.DESCRIPTOR.full_name
        raise InvalidRequestError.of("request", f"is not a {name} in protobuf's binary format") from None
    validate(message)
    return message
