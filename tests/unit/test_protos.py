"""The generated messages are the Stigmer v1 API, whole, commented, and not stale."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import protovalidate
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    FileDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from unit.stigmer_facts import Fact, Rule, read_facts, read_rules

ROOT = Path(__file__).resolve().parents[2]
PROTO = ROOT / "proto"
POOL = descriptor_pool.Default()
OURS_FROM = 1000
"""Numbers of fields we add to messages of the Stigmer API begin here."""

DEVIATIONS = {
    # The reference's rule names the wrong kind, so that no reference can be stored and resolved.
    "ai.stigmer.agentic.agentinstance.v1.AgentInstanceSpec.environment_refs": "items.kind in 53 52 0",
    # The services know the kind from the field; a reference may leave it out.
    "ai.stigmer.agentic.agent.v1.AgentSpec.skill_refs": "items.kind in 43 0",
    "ai.stigmer.agentic.agent.v1.SubAgent.skill_refs": "items.kind in 43 0",
}

SCALARS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_DOUBLE: "double",
}


def proto_files() -> list[str]:
    return sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))


def load(file: str) -> FileDescriptor:
    module = importlib.import_module(file.removesuffix(".proto").replace("/", ".") + "_pb2")
    return module.DESCRIPTOR


FILES = [load(file) for file in proto_files()]
STIGMER = [file for file in FILES if file.package.startswith("ai.stigmer.")]


def type_of(field: FieldDescriptor) -> str:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields_by_number[1], field.message_type.fields_by_number[2]
        return f"map<{type_of(key)},{type_of(value)}>"
    named = field.message_type or field.enum_type
    name = named.full_name if named is not None else SCALARS[field.type]
    return f"repeated {name}" if field.is_repeated else name


def facts_of_message(message: Descriptor) -> Iterator[Fact]:
    yield Fact("message", message.full_name)
    for field in message.fields:
        oneof = f" oneof {field.containing_oneof.name}" if field.containing_oneof else ""
        yield Fact("field", message.full_name, f"{field.number} {field.name} {type_of(field)}{oneof}")


def facts_of_enum(enum: EnumDescriptor) -> Iterator[Fact]:
    yield Fact("enum", enum.full_name)
    for value in enum.values:
        yield Fact("value", enum.full_name, f"{value.number} {value.name}")


def facts_of_method(method: MethodDescriptor) -> Fact:
    taken = "stream " * method.client_streaming + method.input_type.full_name
    given = "stream " * method.server_streaming + method.output_type.full_name
    return Fact("method", method.containing_service.full_name, f"{method.name} {taken} -> {given}")


def facts_of(file: FileDescriptor) -> Iterator[Fact]:
    for message in file.message_types_by_name.values():
        yield from facts_of_message(message)
    for enum in file.enum_types_by_name.values():
        yield from facts_of_enum(enum)
    service: ServiceDescriptor
    for service in file.services_by_name.values():
        yield Fact("service", service.full_name)
        yield from (facts_of_method(method) for method in service.methods)


GENERATED = {fact for file in STIGMER for fact in facts_of(file)}
WANTED = set(read_facts())


def test_the_list_of_facts_is_whole() -> None:
    assert Counter(fact.kind for fact in read_facts()) == {
        "message": 87,
        "field": 299,
        "enum": 16,
        "value": 93,
        "service": 18,
        "method": 56,
    }
    assert len(WANTED) == 569


def test_every_fact_of_the_stigmer_api_holds_in_the_generated_code() -> None:
    assert sorted(map(str, WANTED - GENERATED)) == []


def test_what_we_add_to_the_stigmer_api_is_a_field_from_1000_on() -> None:
    added = GENERATED - WANTED
    assert [str(fact) for fact in added if fact.kind != "field"] == []
    assert [str(fact) for fact in added if int(fact.text.split(" ")[0]) < OURS_FROM] == []
    assert {file.package for file in FILES if file not in STIGMER} == {"agent_runner.v1"}


@pytest.mark.parametrize("tool", ["generate_protos.py", "generate_api_reference.py"])
def test_what_is_generated_from_the_protos_is_not_stale(tool: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / tool), "--check"],
        capture_output=True,
        text=True,
        timeout=300,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr


# -- constraints ------------------------------------------------------------------------------------


def rules_by_message() -> dict[str, list[Rule]]:
    rules: dict[str, list[Rule]] = {}
    for rule in read_rules():
        rules.setdefault(rule.message, []).append(rule)
    return rules


RULES = rules_by_message()


def new(name: str) -> Message:
    return GetMessageClass(POOL.FindMessageTypeByName(name))()


def right(name: str) -> Message:
    """A message which keeps every rule, with nothing in it that no rule asks for."""
    message = new(name)
    for rule in RULES.get(name, []):
        make_right(message, rule)
    return message


def make_right(message: Message, rule: Rule) -> None:
    what, *arguments = rule.text.split(" ")
    if what == "oneof":
        member = message.DESCRIPTOR.oneofs_by_name[rule.field].fields[0]
        getattr(message, member.name).CopyFrom(right(member.message_type.full_name))
        return
    field = message.DESCRIPTOR.fields_by_name[rule.field]
    if what == "items.kind":
        getattr(message, rule.field).add(kind=int(arguments[-1]))
    elif what == "owner_scope":
        getattr(message, rule.field).owner_scope = int(arguments[-1])
    elif field.message_type is not None:
        getattr(message, rule.field).SetInParent()
    else:
        setattr(message, rule.field, right_scalar(message, field, what, arguments))


def right_scalar(message: Message, field: FieldDescriptor, what: str, arguments: list[str]) -> object:
    before = getattr(message, field.name)
    match what:
        case "const":
            return arguments[0]
        case "uri":
            return "https://example.com/mcp"
        case "gte":
            return int(arguments[0])
        case "min_len" | "pattern" if field.name == "version_hash":
            return "a" * 64
        case "min_len":
            return "x" * int(arguments[0])
        case "pattern":
            return "v1.0_a-b"
        case "in":
            return arguments[0]
        case "required" if not before:
            return {"string": "x", "bytes": b"x"}[SCALARS[field.type]]
    return before


def wrong_ones(rule: Rule) -> Iterator[Message]:
    """Messages which break this rule alone."""
    message = right(rule.message)
    what, *arguments = DEVIATIONS.get(f"{rule.message}.{rule.field}", rule.text).split(" ")
    if what in ("required", "oneof"):
        message.ClearField(rule.field)
        yield message
    elif what == "items.kind":
        for kind in {0, 40, 43, 50, 52, 53} - set(map(int, arguments[1:])):
            getattr(message, rule.field)[0].kind = kind
            yield message
    elif what == "owner_scope":
        for scope in {0, 1, 2, 3} - set(map(int, arguments[1:])):
            getattr(message, rule.field).owner_scope = scope
            yield message
    else:
        for value in wrong_scalars(what, arguments):
            setattr(message, rule.field, value)
            yield message


def wrong_scalars(what: str, arguments: list[str]) -> list[object]:
    match what:
        case "const":
            return ["", arguments[0].upper(), arguments[0] + "x"]
        case "min_len":
            return ["x" * (int(arguments[0]) - 1)]
        case "pattern" if "{64}$" in arguments[0] and "|" not in arguments[0]:
            return ["", "a" * 63, "a" * 65, "A" * 64]
        case "pattern":
            return ["a b", "a/b", "ü", "a\n"]
        case "defined_only":
            return [99]
        case "gte":
            return [int(arguments[0]) - 1]
        case "lte":
            return [int(arguments[0]) + 1]
        case "in":
            return ["sctp", "TCP"]
        case "uri":
            return ["not a uri", "//missing"]
    raise AssertionError(f"no example breaks {what}")


def complaints(message: Message) -> list[str]:
    """Paths of the fields which are wrong, without indices."""
    try:
        protovalidate.validate(message)
    except protovalidate.ValidationError as error:
        return [
            ".".join(element.field_name for element in violation.proto.field.elements)
            for violation in error.violations
        ]
    return []


@pytest.mark.parametrize("rule", list(read_rules()), ids=str)
def test_a_constraint_refuses_what_breaks_it_and_nothing_else(rule: Rule) -> None:
    assert complaints(right(rule.message)) == []
    for message in wrong_ones(rule):
        assert rule.field in complaints(message), message


@pytest.mark.parametrize("at", sorted(DEVIATIONS))
def test_a_reference_may_leave_its_kind_out(at: str) -> None:
    name, field = at.rsplit(".", 1)
    for kind in DEVIATIONS[at].split(" ")[2:]:
        message = right(name)
        getattr(message, field)[0].kind = int(kind)
        assert complaints(message) == []


# -- comments ---------------------------------------------------------------------------------------


def declared(file: str) -> Iterator[tuple[str, str]]:
    """(declaration, line before it) of each message, enum, service and method."""
    before = ""
    for line in (PROTO / file).read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words and words[0] in ("message", "enum", "service", "rpc"):
            yield f"{words[0]} {words[1].partition('(')[0]}", before.strip()
        before = line


@pytest.mark.parametrize("file", proto_files())
def test_everything_in_a_proto_file_has_a_comment(file: str) -> None:
    assert [what for what, before in declared(file) if not before.startswith("//")] == []


@pytest.mark.parametrize("file", proto_files())
def test_lines_of_proto_files_are_at_most_110_wide(file: str) -> None:
    lines = (PROTO / file).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 110] == []
