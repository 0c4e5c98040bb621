"""The scripts the model follows, as files. JSON is YAML, so they need no writer of their own.

A message is `NAME rounds=N [agents]`; every command writes a line no other call writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EFFECTS = "effects.log"
MOST_ROUNDS = 6
_WORK = ("; sleep 3", "; sleep 0.3", "")
_TEXT = "Next comes the following step, which is written down and looked at. "


def busy_script(folder: Path, *, delay_ms: float) -> Path:
    """Turns of 1 to `MOST_ROUNDS` tool rounds, with and without a sub-agent that works itself."""
    turns = [_turn("^helper", 2, False)]
    for rounds in range(1, MOST_ROUNDS + 1):
        turns += [_turn(f"rounds={rounds} agents", rounds, True), _turn(f"rounds={rounds}$", rounds, False)]
    return write_script(folder / "busy.yaml", turns, delay_ms)


def write_script(path: Path, turns: list[dict[str, Any]], delay_ms: float) -> Path:
    script = {"defaults": {"delay_ms": delay_ms, "first_token_ms": delay_ms}, "turns": turns}
    path.write_text(json.dumps(script), encoding="utf-8")
    return path


def execute(command: str) -> dict[str, Any]:
    return {"name": "execute", "args": {"command": command}}


def line_of(command: str) -> str:
    """The line a command of a script writes; empty when it writes none."""
    return command.split("'")[1] if command.startswith("echo '") else ""


def _turn(when: str, rounds: int, agents: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    for number in range(1, rounds + 1):
        calls = [execute(_append(f"#{number}", after=_WORK[number % len(_WORK)]))]
        if number == 2:  # two calls at once
            calls.append(execute(_append(f"#{number}b")))
        if agents and number == 1:
            calls.append(
                {
                    "name": "task",
                    "args": {"description": "helper of {{message}}", "subagent_type": "general-purpose"},
                }
            )
        steps.append({"text": _TEXT, "calls": calls})
    return {"when": {"message": when}, "steps": [*steps, {"text": _TEXT * 2 + "Done."}]}


def _append(suffix: str, after: str = "") -> str:
    return f"echo '{{{{message}}}} {suffix}' >> {EFFECTS}{after}"
