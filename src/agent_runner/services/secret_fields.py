"""The variables inside resources: checked, sealed where they are kept, masked where they are read.

Which fields hold variables is read from the descriptors: every map whose values have `value` and
`is_secret`, wherever it stands. A new kind with such a map is covered without a line here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from agent_runner.domain.environments import UNSET, violations
from agent_runner.domain.masking import MASK
from agent_runner.errors import (
    FailedPreconditionError,
    InvalidRequestError,
    SecretUnreadableError,
    Violation,
)
from agent_runner.ports.secrets import SecretBox, SecretPlace
from agent_runner.v1.runner_service_pb2 import ResolveEnvironmentResponse

M = TypeVar("M", bound=Message)


class Variables(NamedTuple):
    """One map of variables in a message."""

    path: str
    """Such as `spec.env_spec.data`."""
    data: Any
    """The map itself: writing to its values changes the message."""


def variables_of(message: Message) -> Iterator[Variables]:
    """Every map of variables in a message that has one, however deep."""
    yield from _walk(message, "")


def check(message: Message) -> None:
    """Refuse variables no process could be given.

    Raises:
        InvalidRequestError: names the fields; never repeats a value.
    """
    found = [problem for path, data in variables_of(message) for problem in violations(path, data)]
    if found:
        raise InvalidRequestError(found)


def mask(message: Message) -> None:
    """Put MASK in place of every secret, as people get to see a resource."""
    for _, data in variables_of(message):
        for variable in data.values():
            if is_sealed(variable):
                variable.value = MASK


def is_sealed(variable: Any) -> bool:
    """Whether a stored variable is encrypted: those that are secret and really have a value."""
    return bool(variable.is_secret) and variable.value not in ("", UNSET)


def shown(message: M) -> M:
    """The message as it may leave the server: itself when it has no secrets, else a masked copy.

    What `ResolveEnvironment` answers stays: it is for the holder of an execution, and for nobody else.
    """
    if not _fields(message.DESCRIPTOR) or isinstance(message, ResolveEnvironmentResponse):
        return message
    if not any(is_sealed(v) for _, data in variables_of(message) for v in data.values()):
        return message
    copy = type(message)()
    copy.CopyFrom(message)
    mask(copy)
    return copy


class _NoKeys:
    """A `SecretBox` of a server that was given no keys: it takes no secrets, rather than keep them clear."""

    current_key_id = ""

    def seal(self, value: str, place: SecretPlace) -> str:
        raise FailedPreconditionError(f"This server has no encryption keys, so it cannot keep {place}.")

    def open(self, sealed: str, place: SecretPlace) -> str:
        raise SecretUnreadableError(f"This server has no encryption keys, so it cannot read {place}.")

    def key_id(self, sealed: str) -> str:
        return ""


class SecretFields:
    """Seals and opens the secrets of whole resources, in place.

    A resource in memory is clear (as it came in a request), sealed (as it is stored) or masked (as it
    goes out); nothing tells which but where it came from.
    """

    def __init__(self, box: SecretBox | None = None) -> None:
        """Without a box every secret is refused."""
        self._box: SecretBox = box or _NoKeys()

    def seal(self, kind: str, resource: Any, before: Any | None = None) -> None:
        """Make a clear resource a sealed one.

        Args:
            kind: as in the store, such as `agent_execution`.
            resource: has its id and org.
            before: what is stored, sealed; where the request has MASK, its value stays.

        Raises:
            InvalidRequestError: a variable is wrong, or has MASK and there is nothing stored to keep.
        """
        check(resource)
        known = dict(variables_of(before)) if before is not None else {}
        problems: list[Violation] = []
        for path, data in variables_of(resource):
            for name in sorted(data):
                variable = data[name]
                if not self._keep(variable, known.get(path, {}), name):
                    problems.append(_nothing_to_keep(path, name, variable))
                elif is_sealed(variable) and variable.value != MASK:
                    variable.value = self._box.seal(variable.value, _place(kind, resource, path, name))
                elif is_sealed(variable):
                    variable.value = known[path][name].value
        if problems:
            raise InvalidRequestError(problems)

    def open(self, kind: str, resource: Any) -> None:
        """Make a sealed resource a clear one.

        Raises:
            SecretUnreadableError: names the value that cannot be decrypted, and why.
        """
        for path, data in variables_of(resource):
            for name, variable in data.items():
                if is_sealed(variable):
                    variable.value = self._box.open(variable.value, _place(kind, resource, path, name))

    def rotate(self, kind: str, resource: Any) -> int:
        """Seal again, with the current key, what is sealed with another one; returns how many were.

        Raises:
            SecretUnreadableError: as `open`; nothing was changed.
        """
        found = []
        for path, data in variables_of(resource):
            for name, variable in data.items():
                if is_sealed(variable) and self._box.key_id(variable.value) != self._box.current_key_id:
                    place = _place(kind, resource, path, name)
                    found.append((variable, place, self._box.open(variable.value, place)))
        for variable, place, clear in found:
            variable.value = self._box.seal(clear, place)
        return len(found)

    def key_ids(self, resource: Message) -> Counter[str]:
        """How many values are sealed with each key."""
        return Counter(
            self._box.key_id(variable.value) or "unreadable"
            for _, data in variables_of(resource)
            for variable in data.values()
            if is_sealed(variable)
        )

    @property
    def current_key_id(self) -> str:
        return self._box.current_key_id

    @staticmethod
    def _keep(variable: Any, known: Mapping[str, Any], name: str) -> bool:
        """False for a MASK without anything behind it, or by which a secret would become public."""
        if variable.value != MASK:
            return True
        kept = name in known and is_sealed(known[name])
        return kept if variable.is_secret else not kept


def _nothing_to_keep(path: str, name: str, variable: Any) -> Violation:
    field = f'{path}["{name}"]'
    if not variable.is_secret:
        return Violation(field, "is a secret; to make it public, give its value rather than the mask.")
    return Violation(
        field, f"is {MASK}, which stands for a stored secret, and none is stored: give the value."
    )


def _place(kind: str, resource: Any, path: str, name: str) -> SecretPlace:
    metadata = resource.metadata
    return SecretPlace(metadata.org, kind, metadata.id, f"{path}.{name}")


def _walk(message: Message, prefix: str) -> Iterator[Variables]:
    for field in _fields(message.DESCRIPTOR):
        path = f"{prefix}{field.name}"
        value = getattr(message, field.name)
        if _holds_variables(field):
            yield Variables(path, value)
        elif _is_map(field):
            for key in value:
                yield from _walk(value[key], f"{path}[{key}].")
        elif field.is_repeated:
            for index, item in enumerate(value):
                yield from _walk(item, f"{path}[{index}].")
        elif message.HasField(field.name):
            yield from _walk(value, f"{path}.")


@cache
def _fields(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    """The fields through which maps of variables can be reached."""
    return tuple(f for f in descriptor.fields if _holds_variables(f) or _leads(f, frozenset({descriptor})))


def _leads(field: FieldDescriptor, seen: frozenset[Descriptor]) -> bool:
    target = _target(field)
    if target is None or target in seen:
        return False
    return any(_holds_variables(f) or _leads(f, seen | {target}) for f in target.fields)


def _target(field: FieldDescriptor) -> Descriptor | None:
    target = field.message_type
    if target is not None and _is_map(field):
        return target.fields_by_name["value"].message_type
    return target


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def _holds_variables(field: FieldDescriptor) -> bool:
    target = _target(field) if _is_map(field) else None
    return target is not None and {"value", "is_secret"} <= set(target.fields_by_name)
