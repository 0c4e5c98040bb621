"""What keeping secrets out of the events of a turn costs, beside the turn itself."""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from agent_runner.domain.masking import EventMasker, Masker
from agent_runner.v1.events_pb2 import (
    ExecutionEvent,
    MessageCompleted,
    MessageDelta,
    MessageStarted,
    ToolCallCompleted,
    ToolCallStarted,
)
from bench.floors import bare_turn
from bench.measures import ROUNDS, TOKENS, Plan, Row, milliseconds, spread
from bench.scripts import turn_script

SECRETS = 5
RUNS = 20
RESULT = "A line of what the tool found, as long as lines are.\n" * 40
"""About 2 KiB."""


async def masking(folder: Path, plan: Plan) -> list[Row]:
    """CPU of masking the events of a 3 s turn with five secrets, as a share of the bare turn's CPU."""
    script = turn_script(folder, rounds=ROUNDS, tokens=TOKENS, delay_ms=20)
    turns = [(await bare_turn(script)).cpu for _ in range(plan.pairs)]
    values = [secrets.token_urlsafe(32) for _ in range(SECRETS)]
    masked = [_masked(values) for _ in range(RUNS)]
    share = statistics.median(masked) / statistics.median(turns) * 100
    return [
        Row(
            f"masking {SECRETS} secrets in a 3 s turn, of its CPU",
            f"{share:.2f} %",
            spread(masked),
            f"{milliseconds(masked)} beside {milliseconds(turns)} of the bare loop",
            "< 2 %",
            share < 2,
        )
    ]


def _masked(values: list[str]) -> float:
    """Seconds of CPU; the shapes of the secrets are made anew, as every execution does."""
    events = list(_events())
    began = time.process_time()
    masker = Masker(values)
    shown = EventMasker(masker)
    for event in events:
        shown.mask(event)
    # What the model reads is masked by itself, before it becomes an event.
    for _ in range(ROUNDS):
        masker.value(RESULT)
    return time.process_time() - began


def _events() -> Iterator[ExecutionEvent]:
    """A turn of as many pieces of text and calls of tools as `turn_script` has."""
    for number in range(ROUNDS):
        message, call = f"msg-{number}", f"call-{number}"
        yield ExecutionEvent(message_started=MessageStarted(message_id=message))
        for _ in range(TOKENS // ROUNDS):
            yield ExecutionEvent(message_delta=MessageDelta(message_id=message, text="word "))
        yield ExecutionEvent(message_completed=MessageCompleted(message_id=message))
        started = ToolCallStarted(tool_call_id=call, name="execute", message_id=message)
        started.args.update({"command": f"grep -rn 'thing {number}' /workspace", "timeout": 60})
        yield ExecutionEvent(tool_call_started=started)
        yield ExecutionEvent(tool_call_completed=ToolCallCompleted(tool_call_id=call, result=RESULT))
