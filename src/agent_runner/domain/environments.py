"""Which variables a run gets, and where each came from.

Layers are merged in order, a later one winning: the agent's `env_spec`, each environment of the
instance, the execution's `runtime_env`. What a layer can say of a variable:

    a value       NAME is this from here on
    removal       NAME is gone from here on: the value is `{{unset}}`
    requirement   NAME must have a value in the end: an empty value in an `env_spec`

A variable one layer calls secret is secret in the end, whatever later layers say of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Protocol

from agent_runner.errors import Violation

UNSET = "{{unset}}"
"""The value by which a layer removes a variable. In-band, so that every Stigmer client can send it."""

MOST_BYTES = 64 * 1024
"""The longest value. Linux refuses to start a process with one of 128 KiB."""
MOST_BYTES_TOGETHER = 1024 * 1024
"""All values of one resource."""
MOST_VARIABLES = 1000

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}\Z")


class Value(Protocol):
    """`EnvironmentValue` and `ExecutionValue` both are this."""

    @property
    def value(self) -> str: ...

    @property
    def is_secret(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Variable:
    """What one layer, or several merged ones, say of one variable.

    Attributes:
        value: None when it has none: removed, or only asked for.
        required: a layer asks for it.
        sources: the layers that gave or removed it, in order; the last one won.
    """

    value: str | None = field(default=None, repr=False)
    is_secret: bool = False
    required: bool = False
    sources: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """The layer whose word holds; empty when none gave a value."""
        return self.sources[-1] if self.sources else ""

    def followed_by(self, later: Variable) -> Variable:
        """This and then a later layer's word; associative."""
        return Variable(
            value=later.value if later.sources else self.value,
            is_secret=self.is_secret or later.is_secret,
            required=self.required or later.required,
            sources=self.sources + later.sources,
        )


@dataclass(frozen=True, slots=True)
class MergedEnvironment:
    """Variables by name, with what is known of each."""

    variables: Mapping[str, Variable] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, str]:
        """Name to value, of those that have one."""
        return {name: v.value for name, v in self.variables.items() if v.value is not None}

    @property
    def sources(self) -> dict[str, str]:
        """Name to the layer which set it, for "where does this come from?"."""
        return {name: v.source for name, v in self.variables.items() if v.value is not None}

    @property
    def secrets(self) -> dict[str, str]:
        """Name to value, of those that are secret and have one."""
        return {n: v.value for n, v in self.variables.items() if v.is_secret and v.value is not None}

    @property
    def missing(self) -> tuple[str, ...]:
        """Names that are required and have no value, sorted."""
        return tuple(sorted(n for n, v in self.variables.items() if v.required and v.value is None))

    def followed_by(self, later: MergedEnvironment) -> MergedEnvironment:
        """This with a later layer on top; associative."""
        nothing = Variable()
        names = [*self.variables, *(name for name in later.variables if name not in self.variables)]
        return MergedEnvironment(
            {
                name: self.variables.get(name, nothing).followed_by(later.variables.get(name, nothing))
                for name in names
            }
        )


def layer(source: str, data: Mapping[str, Value], *, empty_is_required: bool = False) -> MergedEnvironment:
    """One layer.

    Args:
        source: what it is called when people ask where a value is from, such as `environment base`.
        data: variables by name.
        empty_is_required: an empty value asks for the variable rather than setting it to nothing; the
            rule of an `env_spec`.
    """
    return MergedEnvironment({name: _said(source, value, empty_is_required) for name, value in data.items()})


def _said(source: str, value: Value, empty_is_required: bool) -> Variable:
    if value.value == UNSET:
        return Variable(None, value.is_secret, sources=(source,))
    if empty_is_required and not value.value:
        return Variable(None, value.is_secret, required=True)
    return Variable(value.value, value.is_secret, sources=(source,))


def merge(layers: Iterable[MergedEnvironment]) -> MergedEnvironment:
    """Merge layers, a later one winning over an earlier one."""
    return reduce(MergedEnvironment.followed_by, layers, MergedEnvironment())


def resolve(
    agent: Mapping[str, Value],
    environments: Iterable[tuple[str, Mapping[str, Value]]],
    runtime: Mapping[str, Value],
) -> MergedEnvironment:
    """The environment of one execution.

    Args:
        agent: `Agent.spec.env_spec.data`.
        environments: (slug, `Environment.spec.data`) of each environment the instance refers to, in order.
        runtime: `AgentExecution.spec.runtime_env`.
    """
    return merge(
        (
            layer("agent", agent, empty_is_required=True),
            *(layer(f"environment {slug}", data) for slug, data in environments),
            layer("runtime", runtime),
        )
    )


def is_variable_name(name: str) -> bool:
    """Whether a shell can read it: letters, digits and `_`, no digit first, up to 255 characters."""
    return _NAME.match(name) is not None


def violations(path: str, data: Mapping[str, Value]) -> list[Violation]:
    """What is wrong with the variables of one resource; no value is ever repeated in the answer.

    Args:
        path: of the map in its message, such as `spec.data`.
    """
    # Maps of protobuf have no order of their own.
    found = [problem for name in sorted(data) for problem in _violations(path, name, data[name])]
    if len(data) > MOST_VARIABLES:
        found.append(Violation(path, f"has {len(data)} variables; at most {MOST_VARIABLES} fit."))
    if sum(len(v.value.encode()) for v in data.values()) > MOST_BYTES_TOGETHER:
        found.append(Violation(path, f"is larger than {MOST_BYTES_TOGETHER} bytes; put large data in files."))
    return found


def _violations(path: str, name: str, value: Value) -> Iterable[Violation]:
    here = f"{path}[{json.dumps(name[:64])}]"
    if not is_variable_name(name):
        yield Violation(here, "is no variable name: use letters, digits and _, and no digit first.")
    size = len(value.value.encode())
    if size > MOST_BYTES:
        yield Violation(here, f"has {size} bytes; at most {MOST_BYTES} fit. Put large data in a file.")
    if "\0" in value.value:
        yield Violation(here, "holds a NUL character, which no process can be given.")
