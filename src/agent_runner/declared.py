"""Settings as a dataclass that declares them: which names a value may come by, and what it may be.

In place of pydantic, which a control plane would load for nothing else: 12 MiB and 0.1 s of every process.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from agent_runner.errors import SettingsError

_KEY: Final = "setting"
_YES: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
_NO: Final = frozenset({"0", "false", "f", "no", "n", "off"})


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, as declared.

    Attributes:
        variables: names of environment variables, the one that counts most first.
        description: what it means, for people.
        default: None also where it is made when it is needed.
        kind: `str`, `int`, `float`, `bool` or `Path`.
        choices: the only values there are; empty for any.
        least, most: bounds of a number, themselves allowed.
        check: makes the value what it should be, or raises ValueError with what it must be.
    """

    variables: tuple[str, ...]
    description: str
    default: Any
    kind: type
    choices: tuple[str, ...]
    least: float | None
    most: float | None
    check: Callable[[Any], Any] | None


def setting(
    *,
    description: str,
    default: Any = dataclasses.MISSING,
    default_factory: Any = dataclasses.MISSING,
    variable: str | None = None,
    aliases: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
    check: Callable[[Any], Any] | None = None,
    secret: bool = False,
) -> Any:
    """A field of a settings class.

    Args:
        variable: the environment variable; None: the prefix and the field's name.
        aliases: further variables, asked after it.
        secret: left out of `repr`.
    """
    declared = {
        "description": description,
        "variable": variable,
        "aliases": aliases,
        "least": least,
        "most": most,
        "check": check,
    }
    given = {"default": default} if default_factory is dataclasses.MISSING else {}
    made = {} if default_factory is dataclasses.MISSING else {"default_factory": default_factory}
    return dataclasses.field(**given, **made, repr=not secret, metadata={_KEY: declared})


@cache
def declared(settings: type, prefix: str) -> Mapping[str, Setting]:
    """The settings a class declares, by the names of their fields, in their order."""
    hints = typing.get_type_hints(settings)
    return {
        field.name: _declaration(field, hints[field.name], prefix)
        for field in dataclasses.fields(settings)
        if _KEY in field.metadata
    }


def _declaration(field: dataclasses.Field[Any], hint: Any, prefix: str) -> Setting:
    parts = dict(field.metadata[_KEY])
    variable = parts.pop("variable") or f"{prefix}{field.name.upper()}"
    if isinstance(hint, types.UnionType):  # T | None: nobody can give None
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    return Setting(
        variables=(variable, *parts.pop("aliases")),
        default=None if field.default is dataclasses.MISSING else field.default,
        kind=str if choices else hint,
        choices=choices,
        **parts,
    )


@dataclass(frozen=True, slots=True)
class Given:
    """Values of one source that counts less than those before it.

    Attributes:
        values: by the names of the fields.
        names: what each was called there, for messages.
    """

    values: Mapping[str, Any]
    names: Mapping[str, str]


def from_variables(known: Mapping[str, Setting], environment: Mapping[str, str]) -> Given:
    """What the environment says; of several names of a setting the first counts."""
    found = {
        name: next((variable for variable in entry.variables if variable in environment), "")
        for name, entry in known.items()
    }
    names = {name: variable for name, variable in found.items() if variable}
    return Given({name: environment[variable] for name, variable in names.items()}, names)


def from_toml(known: Mapping[str, Setting], path: Path) -> Given:
    """What a file says, by plain names.

    Raises:
        SettingsError: it cannot be read, or has a name that is no setting's.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else " See docs/reference/settings.md."
            raise SettingsError(f"{name} in {path} is not a setting.{hint}")
    return Given(values, {name: f"{name} in {path}" for name in values})


def resolved(known: Mapping[str, Setting], sources: Sequence[Given]) -> dict[str, Any]:
    """The value of every setting that was given, from the first source which has it.

    Raises:
        SettingsError: values are not what they must be; all of them are named.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, entry in known.items():
        source = next((source for source in sources if name in source.values), None)
        if source is None:
            continue
        try:
            values[name] = _checked(entry, source.values[name])
        except ValueError as error:
            problems.append(f"{source.names.get(name, name)}: {error}.")
    if problems:
        raise SettingsError(" ".join(problems))
    return values


def _checked(entry: Setting, given: Any) -> Any:
    value = _PARSERS[entry.kind](given)
    if entry.check is not None:
        value = entry.check(value)
    if entry.choices and value not in entry.choices:
        raise ValueError(f"must be {_either(entry.choices)}, not {value!r}")
    below = entry.least is not None and value < entry.least
    if below or (entry.most is not None and value > entry.most):
        to = f" to {entry.most}" if entry.most is not None else ""
        raise ValueError(f"must be from {entry.least}{to}, not {value}")
    return value


def _either(choices: Iterable[str]) -> str:
    *first, last = choices
    return f"{', '.join(first)} or {last}" if first else last


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise ValueError("must be text")
    return given


def _number(given: Any) -> float:
    try:
        value = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"must be a number, not {given!r}")
    return value


def _whole(given: Any) -> int:
    if isinstance(given, str):
        try:
            return int(given)
        except ValueError:
            raise ValueError(f"must be a whole number, not {given!r}") from None
    value = _number(given)
    if not value.is_integer():
        raise ValueError(f"must be a whole number, not {given!r}")
    return int(given)


def _choice(given: Any) -> bool:
    word = str(given).strip().lower()
    if isinstance(given, bool) or word in _YES | _NO:
        return given if isinstance(given, bool) else word in _YES
    raise ValueError(f"must be true or false, not {given!r}")


def _path(given: Any) -> Path:
    return given if isinstance(given, Path) else Path(_text(given))


_PARSERS: Final[Mapping[type, Callable[[Any], Any]]] = {
    str: _text,
    int: _whole,
    float: _number,
    bool: _choice,
    Path: _path,
}
