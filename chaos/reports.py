"""Numbers for people."""

from __future__ import annotations

import time
from collections.abc import Sequence

_BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - _BEGAN:7.1f} {text}", flush=True)


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def quantiles(values: Sequence[float]) -> str:
    if not values:
        return "none"
    p50, p95 = quantile(values, 0.5), quantile(values, 0.95)
    return f"p50 {p50:.2f} s, p95 {p95:.2f} s, max {max(values):.2f} s, n={len(values)}"
