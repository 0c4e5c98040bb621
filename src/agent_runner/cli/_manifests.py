"""Manifests: YAML to resources, every problem told with file, line and column.

A manifest is the proto JSON of a resource in YAML, in snake_case or camelCase. Shorter forms which
mean the same: a word for a reference (its slug) or for an environment value (its value), and enum
values without their common prefix, in any case. `status` is never applied.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from agent_runner.cli._errors import NOT_FOUND, USAGE, CommandError, did_you_mean
from agent_runner.client.kinds import API_VERSION, EXECUTION, KINDS, Kind
from agent_runner.domain.slugs import slug_of
from agent_runner.errors import Violation

Position = tuple[int, int]
"""Line and column, from 1."""

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
_SHORT_FORMS = {
    "ai.stigmer.commons.apiresource.ApiResourceReference": "slug",
    "ai.stigmer.agentic.environment.v1.EnvironmentValue": "value",
    "ai.stigmer.agentic.executioncontext.v1.ExecutionValue": "value",
}
"""Messages which may be written as one word, and the field it goes to."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong at a place in a file."""

    file: str
    position: Position
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.position[0]}:{self.position[1]}: {self.text}"


@dataclass(slots=True)
class Manifest:
    """One resource out of a file, and where its parts stand.

    Attributes:
        positions: path as in a violation, such as `spec.skill_refs[2].slug`, to its place.
    """

    file: str
    kind: Kind
    resource: Any
    positions: Mapping[str, Position] = field(repr=False)

    def place(self, path: str) -> Position:
        """Where a field stands, or the nearest thing around it which is there."""
        while path and path not in self.positions:
            cut = max(path.rfind("."), path.rfind("["))
            path = path[:cut] if cut > 0 else ""
        return self.positions.get(path) or self.positions[""]

    def problem(self, violation: Violation) -> Problem:
        """A violation of a rule, at its place."""
        name = f"{violation.field}: " if violation.field else ""
        return Problem(self.file, self.place(violation.field), f"{name}{violation.problem}")


def invalid(problems: Sequence[Problem]) -> CommandError:
    """The error for problems in manifests; nothing was applied."""
    return CommandError(
        "The manifests are not valid; nothing was applied.",
        code="INVALID_ARGUMENT",
        exit_code=USAGE,
        lines=[str(problem) for problem in problems],
    )


def load(sources: Sequence[tuple[str, str]], *, org: str) -> list[Manifest]:
    """Manifests out of (name, text) pairs, in the order to apply them.

    Raises:
        CommandError: any problem in any of them; all are listed.
    """
    manifests: list[Manifest] = []
    problems: list[Problem] = []
    for name, text in sources:
        try:
            documents = _parse(name, text)
        except _BrokenYamlError as error:
            problems.append(error.problem)
            continue
        for document in documents:
            reader = _Reader(name, org)
            manifest = reader.manifest(document)
            problems += reader.problems
            if manifest is not None and not reader.problems:
                manifests.append(manifest)
    if problems:
        raise invalid(problems)
    return sorted(manifests, key=lambda m: m.kind.rank)


class _BrokenYamlError(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def _parse(name: str, text: str) -> list[Any]:
    """The documents of a file, with positions; empty ones are left out."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    yaml = YAML(typ="rt")
    try:
        return [document for document in yaml.load_all(text) if document is not None]
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        what = " ".join(filter(None, (error.context, error.problem))).split("\n")[0]
        raise _BrokenYamlError(Problem(name, place, f"This is no valid YAML: {what}.")) from error
    except YAMLError as error:
        raise _BrokenYamlError(
            Problem(name, (1, 1), f"This is no valid YAML: {str(error).splitlines()[0]}.")
        ) from error


class _Reader:
    """Reads one document against the descriptor of its kind, and collects what is wrong."""

    def __init__(self, file: str, org: str) -> None:
        self._file = file
        self._org = org
        self._positions: dict[str, Position] = {}
        self.problems: list[Problem] = []

    def manifest(self, document: Any) -> Manifest | None:
        """The resource; None, and at least one problem, when it cannot be made."""
        self._positions[""] = _start(document)
        kind = self._kind(document)
        if kind is None:
            return None
        message = kind.message()
        document.pop("status", None)
        self._fill(message, document, "")
        if self.problems:
            return None
        _set_defaults(kind, message, self._org)
        return Manifest(self._file, kind, message, self._positions)

    def _kind(self, document: Any) -> Kind | None:
        if not isinstance(document, dict):
            self._complain(
                (1, 1) if not hasattr(document, "lc") else _start(document),
                "A manifest is a mapping with `kind`, `metadata` and `spec`.",
            )
            return None
        name = document.get("kind")
        found = next((kind for kind in KINDS if kind.name == name), None)
        if found is None:
            names = [kind.name for kind in KINDS]
            if name is None:
                problem = f"`kind` is missing. It is one of {', '.join(names)}."
            else:
                hint = did_you_mean(str(name), names) or f" There are: {', '.join(names)}."
                problem = f"{name!r} is no kind of resource.{hint}"
            self._complain(_value_place(document, "kind"), problem)
        return found

    def _complain(self, place: Position, text: str) -> None:
        self.problems.append(Problem(self._file, place, text))

    def _fill(self, message: Message, node: Mapping[Any, Any], path: str) -> None:
        fields = _fields_by_either_name(message.DESCRIPTOR)
        for key, value in node.items():
            place = _key_place(node, key)
            found = fields.get(key) if isinstance(key, str) else None
            if found is None:
                names = sorted({f.name for f in fields.values()})
                hint = did_you_mean(str(key), names) or f" There are: {', '.join(names)}."
                self._complain(place, f"{message.DESCRIPTOR.name} has no field {key!r}.{hint}")
                continue
            inner = f"{path}.{found.name}" if path else found.name
            if inner in self._positions:
                self._complain(place, f"{found.name} is given twice, in both spellings.")
            self._positions[inner] = place
            rival = self._rival(message, found)
            if rival is not None:
                self._complain(place, f"{found.name} and {rival} are alternatives; give one of them.")
            if value is not None:
                self._set(message, found, value, inner, _value_place(node, key))

    def _rival(self, message: Message, target: FieldDescriptor) -> str | None:
        """The alternative that is set already, where only one of several fields can be."""
        group = target.containing_oneof
        if group is None or len(group.fields) == 1:
            return None
        chosen: str | None = message.WhichOneof(group.name)
        return chosen

    def _set(self, message: Message, target: FieldDescriptor, value: Any, path: str, place: Position) -> None:
        if _is_map(target):
            self._set_map(message, target, value, path, place)
        elif target.is_repeated:
            self._set_list(message, target, value, path, place)
        elif target.message_type is not None:
            self._set_message(getattr(message, target.name), value, path, place)
        else:
            converted = self._scalar(target, value, place)
            if converted is not None:
                setattr(message, target.name, converted)

    def _set_map(
        self, message: Message, target: FieldDescriptor, value: Any, path: str, place: Position
    ) -> None:
        if not isinstance(value, dict):
            self._complain(place, f"{target.name} is a mapping of names to values, not {_called(value)}.")
            return
        entries = getattr(message, target.name)
        inner_type: Any = _message_type(target).fields_by_name["value"]
        for key, inner in value.items():
            if not isinstance(key, str):
                self._complain(
                    _key_place(value, key), f"The name {key!r} is {_called(key)}; put it in quotes."
                )
                continue
            inner_path = f'{path}["{key}"]'
            self._positions[inner_path] = _key_place(value, key)
            at = _value_place(value, key)
            if inner_type.message_type is not None:
                self._set_message(entries[key], inner, inner_path, at)
            elif (converted := self._scalar(inner_type, inner, at)) is not None:
                entries[key] = converted

    def _set_list(
        self, message: Message, target: FieldDescriptor, value: Any, path: str, place: Position
    ) -> None:
        if not isinstance(value, list):
            self._complain(place, f"{target.name} is a list, not {_called(value)}.")
            return
        items = getattr(message, target.name)
        for index, inner in enumerate(value):
            inner_path = f"{path}[{index}]"
            at = self._positions[inner_path] = _item_place(value, index)
            if target.message_type is not None:
                self._set_message(items.add(), inner, inner_path, at)
            elif (converted := self._scalar(target, inner, at)) is not None:
                items.append(converted)

    def _set_message(self, message: Message, value: Any, path: str, place: Position) -> None:
        message.SetInParent()
        name = message.DESCRIPTOR.full_name
        if name == "google.protobuf.Struct":
            self._set_struct(message, value, place)
        elif isinstance(value, dict):
            self._fill(message, value, path)
        elif name in _SHORT_FORMS and value is not None:
            short = _SHORT_FORMS[name]
            converted = self._scalar(_field_of(message, short), value, place)
            if converted is not None:
                setattr(message, short, converted)
        else:
            self._complain(place, f"{message.DESCRIPTOR.name} is a mapping, not {_called(value)}.")

    def _set_struct(self, message: Message, value: Any, place: Position) -> None:
        from google.protobuf.json_format import ParseDict, ParseError

        try:
            ParseDict(value, message)
        except ParseError as error:
            self._complain(place, str(error))

    def _scalar(self, target: FieldDescriptor, value: Any, place: Position) -> Any:
        """The value as the field takes it; None, and a problem, when it does not."""
        try:
            return _convert(target, value)
        except ValueError as error:
            self._complain(place, f"{target.name}: {error}")
            return None


def _convert(target: FieldDescriptor, value: Any) -> Any:
    if target.enum_type is not None:
        return _enum_number(target.enum_type, value)
    if target.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if isinstance(value, bool):
            return value
        raise ValueError(f"must be true or false, not {_called(value)}.")
    if target.cpp_type in _INTEGERS:
        low, high = _INTEGERS[target.cpp_type]
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return int(value)
        raise ValueError(f"must be a whole number from {low} to {high}, not {_called(value)}.")
    if target.cpp_type in _FLOATS:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        raise ValueError(f"must be a number, not {_called(value)}.")
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {_called(value)}; put it in quotes.")
    return _bytes(value) if target.type == FieldDescriptor.TYPE_BYTES else str(value)


def _bytes(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError("must be base64.") from error


def _enum_number(enum: EnumDescriptor, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        if value in enum.values_by_number:
            return int(value)
        raise ValueError(f"there is no value {value}.")
    names = {_short_name(enum, v.name): v.number for v in enum.values if v.number}
    wanted = str(value).lower()
    exact = {v.name.lower(): v.number for v in enum.values}
    for table in (exact, names):
        if wanted in table:
            return table[wanted]
    raise ValueError(f"{value!r} is none of {', '.join(names)}.{did_you_mean(wanted, names)}")


def _short_name(enum: EnumDescriptor, name: str) -> str:
    first, last = min(names := [v.name for v in enum.values]), max(names)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return name[first.rfind("_", 0, same) + 1 :].lower()


def _set_defaults(kind: Kind, resource: Any, org: str) -> None:
    """What a manifest need not say."""
    resource.api_version = resource.api_version or API_VERSION
    # The API lets a resource without a spec pass; what such a thing lacks is better told here.
    resource.spec.SetInParent()
    metadata = resource.metadata
    metadata.SetInParent()
    metadata.org = metadata.org or org
    if kind.owner_scope and not metadata.owner_scope:
        metadata.owner_scope = kind.owner_scope


def _fields_by_either_name(descriptor: Any) -> dict[str, FieldDescriptor]:
    return {name: f for f in descriptor.fields for name in (f.name, f.json_name)}


def _field_of(message: Any, name: str) -> FieldDescriptor:
    found: FieldDescriptor = message.DESCRIPTOR.fields_by_name[name]
    return found


def _message_type(target: FieldDescriptor) -> Descriptor:
    assert target.message_type is not None
    return target.message_type


def _is_map(target: FieldDescriptor) -> bool:
    return target.message_type is not None and target.message_type.GetOptions().map_entry


def _called(value: Any) -> str:
    """What a person calls a YAML value."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) < 40 else "a text"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else f"a {type(value).__name__}"


def _start(node: Any) -> Position:
    position = getattr(node, "lc", None)
    return _from_one(None if position is None else (position.line, position.col), (1, 1))


def _key_place(node: Any, key: Any) -> Position:
    return _from_one(node.lc.data.get(key, ())[:2] if _has_places(node) else None, _start(node))


def _value_place(node: Any, key: Any) -> Position:
    return _from_one(node.lc.data.get(key, ())[2:] if _has_places(node) else None, _start(node))


def _item_place(node: Any, index: int) -> Position:
    return _from_one(node.lc.data.get(index) if _has_places(node) else None, _start(node))


def _has_places(node: Any) -> bool:
    # Empty collections, and those without a place, have none for what is in them.
    return isinstance(getattr(getattr(node, "lc", None), "data", None), dict)


def _from_one(place: Sequence[int | None] | None, otherwise: Position) -> Position:
    """Line and column from 1; the parser counts from 0."""
    if not place or place[0] is None or place[1] is None:
        return otherwise
    return place[0] + 1, place[1] + 1


def check(manifests: Sequence[Manifest]) -> list[Problem]:
    """What the rules of the API say of them, without a server."""
    import protovalidate

    validator = protovalidate.Validator()
    problems = list(_twice(manifests))
    for manifest in manifests:
        problems += _name_problems(manifest)
        for violation in validator.collect_violations(manifest.resource):
            problems.append(manifest.problem(_violation(violation)))
    return problems


def _name_problems(manifest: Manifest) -> list[Problem]:
    metadata = manifest.resource.metadata
    if manifest.kind is EXECUTION or metadata.slug:
        return []
    if not metadata.name:
        return [manifest.problem(Violation("metadata", "name is missing."))]
    if not slug_of(metadata.name):
        return [manifest.problem(Violation("metadata.name", "has no letter or digit of a to z and 0 to 9."))]
    return []


def _twice(manifests: Sequence[Manifest]) -> Iterator[Problem]:
    """Manifests of the same resource: the second would quietly undo the first."""
    seen: dict[tuple[str, str, str], Manifest] = {}
    for manifest in manifests:
        metadata = manifest.resource.metadata
        key = (manifest.kind.name, metadata.org, metadata.slug or slug_of(metadata.name))
        first = seen.setdefault(key, manifest)
        if first is not manifest and manifest.kind is not EXECUTION and key[2]:
            line = first.place("")[0]
            yield Problem(
                manifest.file,
                manifest.place("metadata.name"),
                f"{manifest.kind.word}/{key[2]} is described in {first.file}:{line} already.",
            )


def _violation(violation: Any) -> Violation:
    return Violation(field=_path_of(violation), problem=violation.proto.message, rule=violation.proto.rule_id)


def _path_of(violation: Any) -> str:
    parts: list[str] = []
    for element in violation.proto.field.elements:
        parts.append(("." if parts else "") + element.field_name)
        if element.subscript is not None:
            key = element.subscript.value
            parts.append(f'["{key}"]' if isinstance(key, str) else f"[{key}]")
    return "".join(parts)


def files_of(paths: Sequence[str], *, recursive: bool) -> Iterator[Path]:
    """The YAML and JSON files meant by files and directories, in the order of their names.

    Raises:
        CommandError: a path is not there, or a directory has none.
    """
    for text in paths:
        path = Path(text)
        if path.is_dir():
            pattern = "**/*" if recursive else "*"
            found = sorted(
                p for p in path.glob(pattern) if p.suffix in (".yaml", ".yml", ".json") and p.is_file()
            )
            if not found:
                hint = "" if recursive else f"agent-runner apply -R -f {text}"
                raise CommandError(
                    f"{text} has no .yaml, .yml or .json file.",
                    code="NOT_FOUND",
                    exit_code=NOT_FOUND,
                    hint=hint,
                )
            yield from found
        elif path.exists():
            yield path
        else:
            raise CommandError(f"{text} does not exist.", code="NOT_FOUND", exit_code=NOT_FOUND)
