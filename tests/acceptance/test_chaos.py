"""The promises under fire, in short; `make chaos` blows longer."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WITHIN = 110.0


def test_kills_and_cuts_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    out = _chaos(tmp_path, "faults", "--seed=3", "--count=6", "--gap=0.8", "--sessions=2", "--reconnects=30")

    assert "every promise kept" in out
    assert re.search(r"(\d+) reconnects of watchers: 0 lost, 0 duplicated", out), out
    assert re.search(r"[1-9]\d* side effects: 0 repeated, 0 missing", out), out


def _chaos(folder: Path, *arguments: str) -> str:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environment = kept | {"HOME": str(folder), "PYTHONPATH": str(ROOT / "src")}
    child = subprocess.Popen(
        [sys.executable, "-m", "chaos", *arguments, f"--keep={folder / 'chaos'}"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        out, _ = child.communicate(timeout=WITHIN)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGTERM)  # ends what it has started
        out, _ = child.communicate(timeout=30)
        raise AssertionError(f"not over within {WITHIN:.0f} s:\n{out}") from None
    assert child.returncode == 0, out
    return out
