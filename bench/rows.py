"""One line of the table: a value beside its floor, its spread and its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

_WIDTH = 76


@dataclass(frozen=True, slots=True)
class Spread:
    """How values of one run differ, in the unit of their row."""

    p50: float
    p95: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"p50 {number(self.p50)} p95 {number(self.p95)} [{number(self.low)} to {number(self.high)}]"


@dataclass(frozen=True, slots=True)
class Floor:
    """The same of something bare, measured in the same run."""

    of: str
    value: float
    unit: str

    def __str__(self) -> str:
        return f"{self.of} {number(self.value)} {self.unit}"


@dataclass(frozen=True, slots=True)
class Budget:
    """What section 10 of the design, or an issue, allows, in the unit of the row."""

    limit: float
    at_least: bool = False

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {number(self.limit)}"


def most(limit: float) -> Budget:
    return Budget(limit)


def least(limit: float) -> Budget:
    return Budget(limit, at_least=True)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        n: how many values stand behind it.
        note: what a reader must know to read the line.
        failed: whether something did not work at all, so that the run means nothing.
    """

    name: str
    value: float
    unit: str
    n: int = 1
    spread: Spread | None = None
    floors: tuple[Floor, ...] = ()
    budget: Budget | None = None
    note: str = ""
    failed: bool = False

    @property
    def holds(self) -> bool | None:
        """Whether the budget is kept; None without one."""
        return None if self.budget is None else self.budget.holds(self.value)

    def as_dict(self) -> dict[str, object]:
        """For JSON: everything as it is, and whether the budget holds."""
        return {**asdict(self), "holds": self.holds}

    def line(self) -> str:
        """For people."""
        mark = "FAILED" if self.failed else {True: "holds", False: "MISSED", None: ""}[self.holds]
        shown = f"{number(self.value)} {self.unit}"
        parts = [
            f"{self.name:<{_WIDTH}} {shown:>16}  {self.budget or ''!s:<12} {mark:<6}",
            "; ".join(map(str, self.floors)),
            f"{self.spread or ''}{f' n={self.n}' if self.n > 1 else ''}".strip(),
            self.note,
        ]
        return " | ".join(parts).rstrip(" |")


HEAD = f"{'line':<{_WIDTH}} {'value':>16}  {'budget':<12} {'':<6} | floor of the same run | spread | note"


def number(value: float) -> str:
    """Three digits that count, and all of those before the point."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which so many of the values are; 0.5 is the median."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(values: Sequence[float]) -> Spread:
    return Spread(quantile(values, 0.5), quantile(values, 0.95), min(values), max(values))


def row_of(
    name: str,
    values: Sequence[float],
    unit: str,
    *,
    share: float = 0.5,
    floors: tuple[Floor, ...] = (),
    budget: Budget | None = None,
    note: str = "",
) -> Row:
    """A row of many values: the median, or another quantile, and how they spread."""
    return Row(name, quantile(values, share), unit, len(values), spread(values), floors, budget, note)


def in_ms(seconds: Sequence[float]) -> list[float]:
    return [value * 1e3 for value in seconds]
