"""Data on stdout, in the form that was asked for."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from google.protobuf.message import Message

FORMATS = ("table", "wide", "name", "json", "yaml", "jsonl")

# C0 and C1 controls but tab and newline: what an agent or a tool writes must not steer the terminal.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")


def clean(text: str) -> str:
    """Text without escape sequences and control characters; newlines and tabs stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def one_line(text: str, width: int = 0) -> str:
    """Text on one line, cut with `…` after `width` characters; 0 for all of it."""
    flat = " ".join(clean(text).split())
    return flat if not width or len(flat) <= width else flat[: max(width - 1, 0)] + "…"


def styled(stream: Any) -> bool:
    """Whether colours go to the stream: flag, then environment, then whether it is a terminal."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None and ctx.find_root().color is not None:
        return bool(ctx.find_root().color)
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR") or os.environ.get("CLICOLOR_FORCE"):
        return True
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


def error_stream_is_styled() -> bool:
    return styled(sys.stderr)


def note(text: str) -> None:
    """A line for the person, on stderr."""
    click.echo(text, err=True)


def write(text: str) -> None:
    """Data, on stdout, at once."""
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
    sys.stdout.flush()


def to_dict(message: Message) -> dict[str, Any]:
    """JSON form with the JSON names of protobuf; entries of maps are sorted, so it is the same each time."""
    from google.protobuf import json_format

    found: dict[str, Any] = _with_sorted_maps(message, json_format.MessageToDict(message))
    return found


def _with_sorted_maps(message: Any, value: Any) -> Any:
    if message.DESCRIPTOR.full_name.startswith("google.protobuf."):
        return _sorted(value)
    for target, content in message.ListFields():
        if target.message_type is None:
            continue
        inner = value[target.json_name]
        if target.message_type.GetOptions().map_entry:
            value[target.json_name] = _sorted(inner)
        elif target.is_repeated:
            value[target.json_name] = [_with_sorted_maps(m, v) for m, v in zip(content, inner, strict=True)]
        else:
            value[target.json_name] = _with_sorted_maps(content, inner)
    return value


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(inner) for inner in value] if isinstance(value, list) else value


def to_json(value: Any, *, indent: int | None = 2) -> str:
    import json

    return json.dumps(value, indent=indent, ensure_ascii=False)


def to_yaml(*documents: Any) -> str:
    """One YAML document per value; long and many-line texts as blocks."""
    from io import StringIO

    from ruamel.yaml import YAML
    from ruamel.yaml.scalarstring import LiteralScalarString

    def blocks(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: blocks(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [blocks(inner) for inner in value]
        return LiteralScalarString(value) if isinstance(value, str) and "\n" in value else value

    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = StringIO()
    yaml.dump_all([blocks(document) for document in documents], stream)
    return stream.getvalue()


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, cut: bool | None = None) -> str:
    """Columns without borders. On a terminal the last one is cut to the width; in a pipe nothing is."""
    lines = [list(headers), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    limit = shutil.get_terminal_size().columns if (sys.stdout.isatty() if cut is None else cut) else 0
    shown = []
    for line in lines:
        text = "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        shown.append(one_line_cut(text, limit))
    return "\n".join(shown)


def one_line_cut(text: str, limit: int) -> str:
    return text if not limit or len(text) <= limit else text[: limit - 1] + "…"


def age(moment: datetime | None, now: datetime | None = None) -> str:
    """`45s`, `5m`, `3h`, `12d`; `-` without a time."""
    if moment is None:
        return "-"
    seconds = max(((now or datetime.now(UTC)) - moment).total_seconds(), 0)
    return duration(seconds)


def duration(seconds: float) -> str:
    """Short: the largest unit alone."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def print_resources(
    resources: Sequence[Message],
    format: str,
    *,
    rows: Callable[[bool], str],
    names: Callable[[Message], str],
    single: bool,
) -> None:
    """Write resources; `rows` makes the table (its argument: wide), `names` the line of `-o name`."""
    if format in ("table", "wide"):
        write(rows(format == "wide"))
        return
    if format == "name":
        for resource in resources:
            write(names(resource))
        return
    values = [to_dict(resource) for resource in resources]
    if format == "jsonl":
        for value in values:
            write(to_json(value, indent=None))
    elif format == "yaml":
        write(to_yaml(*values) if values else "")
    else:
        write(to_json(values[0] if single and len(values) == 1 else {"items": values}))
