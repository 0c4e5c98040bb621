"""Settings as a dataclass that declares them; msgspec parses and checks, we say what is wrong.

Pydantic, which a control plane would load for nothing else, is 12 MiB and 0.1 s of every process.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect

from agent_runner.errors import SettingsError

Given = Mapping[str, tuple[str, Any]]
"""What a source says: by the name of the setting, what the value is called there, and the value."""
# What people say besides the words msgspec takes: true, false, 1 and 0.
_WORDS: Final = dict.fromkeys(("yes", "y", "t", "on"), True) | dict.fromkeys(("no", "n", "f", "off"), False)


class Setting(NamedTuple):
    """One setting, as declared; the first of its variables counts most."""

    type: Any
    variables: tuple[str, ...]
    description: str
    default: Any  # None also where it is made when it is needed
    secret: bool


def setting(
    *,
    description: str,
    variable: str | None = None,
    aliases: tuple[str, ...] = (),
    secret: bool = False,
    **default: Any,
) -> Any:
    """A field of a settings class. Its type says what it may be: choices; bounds as `Meta`; patterns too,
    with `extra={"must": "begin with …"}` for people.

    Args:
        variable: of the environment; None: the prefix and the field's name. `aliases` are asked after it.
        secret: neither in `repr` nor in messages.
        default: `default` or `default_factory`, as any field has them.
    """
    told = {"description": description, "variable": variable, "aliases": aliases}
    return dataclasses.field(repr=not secret, metadata=told, **default)


@cache
def declared(settings: type, prefix: str) -> Mapping[str, Setting]:
    """The settings a class declares, by the names of their fields, in their order."""
    types = typing.get_type_hints(settings, include_extras=True)
    known = {}
    for field in (field for field in dataclasses.fields(settings) if field.metadata):
        variable = field.metadata["variable"] or f"{prefix}{field.name.upper()}"
        known[field.name] = Setting(
            type=types[field.name],
            variables=(variable, *field.metadata["aliases"]),
            description=field.metadata["description"],
            default=None if field.default is dataclasses.MISSING else field.default,
            secret=not field.repr,
        )
    return known


def converted(known: Mapping[str, Setting], given: Given) -> dict[str, Any]:
    """What was given, each as the type it is declared with; SettingsError names all that cannot be."""
    values, problems = {}, []
    for name, (called, value) in given.items():
        entry = known[name]
        kind, must = _kind(inspect.type_info(entry.type))
        try:
            values[name] = msgspec.convert(_plain(kind, value), entry.type, strict=False, dec_hook=_path)
        except msgspec.ValidationError:
            problems.append(f"{called}: must {must}{'' if entry.secret else f', not {value!r}'}.")
    if problems:
        raise SettingsError(" ".join(problems))
    return values


def _kind(kind: inspect.Type) -> tuple[inspect.Type, str]:
    """A type without None and `Meta`, and what a value of it must: in its own words, or in ours."""
    match kind:
        case inspect.UnionType(types=(first, _)):  # T | None: nobody can give None
            return _kind(first)
        case inspect.Metadata(type=inner, extra={"must": str(must)}):
            return inner, must
        case inspect.LiteralType(values=(*others, last)):
            return kind, f"be {', '.join(map(str, others))} or {last}"
        case inspect.BoolType():
            return kind, "be true or false"
        case inspect.IntType(ge=least, le=most) | inspect.FloatType(ge=least, le=most):
            number = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
            bounds = [f" {to} {bound}" for to, bound in (("from", least), ("to", most)) if bound is not None]
            return kind, "".join(["be ", number, *bounds])
        case inspect.CustomType():
            return kind, "be a path"
        case _:
            return kind, "be text"


def _plain(kind: inspect.Type, value: Any) -> Any:
    """Numbers and words as msgspec reads them; free text stays as it is."""
    if not isinstance(value, str) or isinstance(kind, inspect.StrType | inspect.CustomType):
        return value
    word = value.strip().lower()
    return _WORDS.get(word, word) if isinstance(kind, inspect.BoolType) else word


def _path(_: type, value: Any) -> Path:
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError as error:  # ~name of nobody here; msgspec tells a ValueError as a wrong value
        raise ValueError(str(error)) from error
