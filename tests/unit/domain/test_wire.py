"""What leaves for those who know the Stigmer API alone."""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor

from agent_runner.domain.wire import FIRST_OWN_FIELD, strip_own_fields, without_own_fields
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution


def full(message_type: type, depth: int = 0) -> object:
    """A message with every field set, some levels deep."""
    message = message_type()
    for field in message.DESCRIPTOR.fields:
        if field.message_type is None:
            value = {"string": "x", "bytes": b"x"}.get(_kind(field), 1)
            if field.is_repeated:
                getattr(message, field.name).append(value)
            elif not (field.containing_oneof and message.WhichOneof(field.containing_oneof.name)):
                setattr(message, field.name, value)
        elif depth < 5 and not field.message_type.full_name.startswith("google."):
            _set_message(message, field, depth)
    return message


def _kind(field: object) -> str:
    return {9: "string", 12: "bytes"}.get(field.type, "number")  # type: ignore[attr-defined]


def _set_message(message: object, field: object, depth: int) -> None:
    name, kind = field.name, field.message_type  # type: ignore[attr-defined]
    if kind.GetOptions().map_entry:
        value = kind.fields_by_name["value"]
        if value.message_type is None:
            getattr(message, name)["k"] = "x"
        else:
            getattr(message, name)["k"].CopyFrom(full(value.message_type._concrete_class, depth + 1))
    elif field.is_repeated:  # type: ignore[attr-defined]
        getattr(message, name).append(full(kind._concrete_class, depth + 1))
    elif not (field.containing_oneof and message.WhichOneof(field.containing_oneof.name)):  # type: ignore[attr-defined]
        getattr(message, name).CopyFrom(full(kind._concrete_class, depth + 1))


def own_fields(message: object) -> list[str]:
    found = []
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.number >= FIRST_OWN_FIELD:
            found.append(field.full_name)
        elif field.message_type is not None and not _of_google(field.message_type):
            is_map = field.message_type.GetOptions().map_entry
            values = value.values() if is_map else value if field.is_repeated else [value]
            for item in values:
                found += own_fields(item) if hasattr(item, "ListFields") else []
    return found


def _of_google(descriptor: Descriptor) -> bool:
    return descriptor.full_name.startswith("google.")


def test_no_field_of_ours_is_left_at_any_depth_and_all_others_are() -> None:
    for message_type in (AgentExecution, Agent):
        message = full(message_type)
        assert own_fields(message)
        copy = without_own_fields(message)  # type: ignore[type-var]
        assert own_fields(message) and not own_fields(copy)
        strip_own_fields(message)  # type: ignore[arg-type]
        assert message == copy
        assert copy.ByteSize() > 100  # type: ignore[attr-defined]
