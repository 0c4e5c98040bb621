"""What the middleware tells the session through the engine's own stream, in order with the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """A running tool printed something."""

    tool_call_id: str
    text: str
    sub_agent_id: str = ""


@dataclass(frozen=True, slots=True)
class Warned:
    """Something people should know."""

    text: str


@dataclass(frozen=True, slots=True)
class Joined:
    """The message of another execution is in the conversation from here on."""

    execution_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Barrier:
    """Set when all that was streamed before it has been handed on."""

    passed: asyncio.Event = field(default_factory=asyncio.Event)


async def all_handed_on(write: Callable[[Any], None]) -> None:
    """Wait until everything streamed so far has been handed on; `write` is the engine's stream writer."""
    barrier = Barrier()
    write(barrier)
    await barrier.passed.wait()
