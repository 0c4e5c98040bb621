"""The scripts the model of a measurement follows, as files."""

from __future__ import annotations

import json
from pathlib import Path


def _todos(number: int) -> list[dict[str, str]]:
    """Another list each time: an agent that repeats itself would be stopped."""
    return [{"content": f"{number}", "status": "pending"}]


def turn_script(folder: Path, *, rounds: int, tokens: int, delay_ms: float) -> Path:
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
        "defaults": {"delay_ms": delay_ms, "first_token_ms": delay_ms, "chunk_tokens": 1},
        "turns": [{"steps": steps}],
    }
    path = folder / f"turn-{rounds}-{tokens}-{delay_ms:g}.yaml"
    path.write_text(json.dumps(script), encoding="utf-8")
    return path
