"""Reads `data/stigmer_facts.txt`: one fact of the Stigmer v1 API a line, in the order of its files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FACTS = Path(__file__).parent / "data" / "stigmer_facts.txt"


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact.

    Attributes:
        kind: `message`, `field`, `enum`, `value`, `service` or `method`.
        owner: full name of the message, enum or service it belongs to, or of itself.
        text: the rest: `NUMBER NAME TYPE [oneof NAME]`, `NUMBER NAME`, `NAME INPUT -> OUTPUT`.
    """

    kind: str
    owner: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.owner}: {self.text}" if self.text else self.owner


@dataclass(frozen=True, slots=True)
class Rule:
    """A constraint: the message's full name, the field's name, and what it says."""

    message: str
    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.message}.{self.field} {self.text}"


def absolute(text: str, package: str) -> str:
    """Write each type of a fact with its package."""

    def one(match: re.Match[str]) -> str:
        name = match.group()
        if name.startswith("."):
            return f"ai.stigmer{name}"
        return f"{package}.{name}" if name[0].isupper() else name

    return re.sub(r"(?<![\w.])\.?[\w.]+", one, text)


def read_lines() -> Iterator[tuple[str, str]]:
    """(package, line) of each line that says something."""
    package = ""
    for line in FACTS.read_text(encoding="utf-8").splitlines():
        if line.startswith("package "):
            package = line.removeprefix("package ")
        elif line and not line.startswith("#"):
            yield package, line


def read_facts() -> Iterator[Fact]:
    kind = owner = ""
    for package, line in read_lines():
        if line.startswith("rule "):
            continue
        if not line.startswith(" "):
            kind, name = line.split(" ")
            owner = f"{package}.{name}"
            yield Fact(kind, owner)
        elif kind == "message":
            number, name, rest = line.strip().split(" ", 2)
            written, _, oneof = rest.partition(" oneof ")
            suffix = f" oneof {oneof}" if oneof else ""
            yield Fact("field", owner, f"{number} {name} {absolute(written, package)}{suffix}")
        elif kind == "enum":
            yield Fact("value", owner, line.strip())
        else:
            name, rest = line.strip().split(" ", 1)
            yield Fact("method", owner, f"{name} {absolute(rest, package)}")


def read_rules() -> Iterator[Rule]:
    for package, line in read_lines():
        if line.startswith("rule "):
            _, at, text = line.split(" ", 2)
            message, field = at.split(".")
            yield Rule(f"{package}.{message}", field, text)
