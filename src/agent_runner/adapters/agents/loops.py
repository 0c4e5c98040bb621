"""Noticing an agent that goes in circles, from its messages alone.

A step is what one message asked for and what came back. Steps which are the same in calls, arguments
and results get nobody further; polling something that changes is no loop.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent_runner.adapters.agents.events import result_of

# Period to the number of rounds at which the model is warned, and at which the turn ends.
_WARN_AT = {1: 3, 2: 2, 3: 3}
_STOP_AT = {1: 6, 2: 4, 3: 5}
_MOST_STEPS = max(period * rounds for period, rounds in _STOP_AT.items())

NOTICE = (
    "\n\n[Notice: the last steps were the same calls with the same results, {rounds} times. Repeating them "
    "will not help. Do something else, or answer with what you know.]"
)


@dataclass(frozen=True, slots=True)
class Loop:
    """A circle the agent is in: `rounds` rounds of `period` steps, up to now."""

    period: int
    rounds: int

    @property
    def to_be_stopped(self) -> bool:
        return self.rounds >= _STOP_AT[self.period]


def find_loop(messages: Sequence[Any]) -> Loop | None:
    """The circle at the end of a conversation, the shortest there is; None when there is none."""
    steps = _last_steps(messages)
    for period, warn_at in _WARN_AT.items():
        rounds = _rounds(steps, period)
        if rounds >= warn_at:
            return Loop(period, rounds)
    return None


def _rounds(steps: Sequence[str], period: int) -> int:
    """How often the newest `period` steps, which come first, stand there in a row."""
    rounds = 1 if len(steps) >= period else 0
    while rounds and steps[rounds * period : (rounds + 1) * period] == steps[:period]:
        rounds += 1
    return rounds


def _last_steps(messages: Sequence[Any]) -> list[str]:
    """The newest steps of this turn, newest first, each as text to compare."""
    steps: list[str] = []
    results: dict[str, str] = {}
    for message in reversed(messages):
        if message.type == "human" or len(steps) == _MOST_STEPS:
            break
        if message.type == "tool":
            results[message.tool_call_id] = result_of(message.content)
        elif message.type == "ai" and message.tool_calls:
            calls = [(c["name"], c["args"], results.pop(c["id"], "")) for c in message.tool_calls]
            steps.append(json.dumps(calls, sort_keys=True, default=str))
    return steps
