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
from bench.floors import BareLoop
from bench.plans import Plan
from bench.rows import Floor, Row, in_ms, most, row_of
from bench.scripts import ROUNDS, TOKENS, usual_turn

SECRETS = 5
RUNS = 20
RESULT = "A line of what the tool found, as long as lines are.\n" * 40
"""About 2 KiB."""


async def masking(folder: Path, plan: Plan) -> list[Row]:
    """CPU of masking the events of a 3 s turn with five secrets, as a share of the bare turn's CPU."""
    loop = BareLoop(usual_turn(folder, delay_ms=20))
    turn = statistics.median([(await loop.turn()).cpu for _ in range(max(plan.pairs // 2, 1))])
    values = [secrets.token_urlsafe(32) for _ in range(SECRETS)]
    masked = [_masked(values) for _ in range(RUNS)]
    return [
        row_of(
            f"CPU of masking {SECRETS} secrets, of a 3 s turn's",
            [seconds / turn * 100 for seconds in masked],
            "%",
            floors=(Floor("bare loop", turn * 1e3, "ms"),),
            budget=most(2),
            note=f"{statistics.median(in_ms(masked)):.1f} ms",
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
