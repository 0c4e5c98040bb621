"""The scripts the model of a measurement follows, as files."""

from __future__ import annotations

import json
from pathlib import Path

# The arguments of a call are some thirteen tokens of their own, so that at 20 ms this takes three seconds.
ROUNDS, TOKENS = 10, 22


def _todos(number: int) -> list[dict[str, str]]:
    """Another list each time: an agent that repeats itself would be stopped."""
    return [{"content": f"{number}", "status": "pending"}]


def usual_turn(folder: Path, *, delay_ms: float) -> Path:
    """The turn the budgets are for: ten tool calls, three seconds at 20 ms a token."""
    return turn_script(folder, rounds=ROUNDS, tokens=TOKENS, delay_ms=delay_ms)


def turn_script(folder: Path, *, rounds: int, tokens: int, delay_ms: float, chunk_tokens: int = 1) -> Path:
    """One turn: `rounds` tool calls that need no sandbox, `tokens` spread over all answers.

    JSON is YAML, so the file needs no writer of its own.
    """
    per_step = tokens // (rounds + 1)
    steps: list[dict[str, object]] = [
        {
            "text": "word " * per_step,
            "calls": [{"name": "write_todos", "args": {"todos": _todos(number)}, "id": f"call-{number}"}],
        }
        for number in range(rounds)
    ]
    steps.append({"text": "word " * (tokens - per_step * rounds)})
    script = {
        "defaults": {"delay_ms": delay_ms, "first_token_ms": delay_ms, "chunk_tokens": chunk_tokens},
        "turns": [{"steps": steps}],
    }
    path = folder / f"turn-{rounds}-{tokens}-{delay_ms:g}-{chunk_tokens}.yaml"
    path.write_text(json.dumps(script), encoding="utf-8")
    return path
