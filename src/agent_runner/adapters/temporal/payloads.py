"""How values travel through Temporal: proto JSON, as both sides of the Stigmer API expect it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from google.protobuf.message import Message
from temporalio.api.common.v1 import Payload
from temporalio.converter import (
    BinaryNullPayloadConverter,
    BinaryPlainPayloadConverter,
    BinaryProtoPayloadConverter,
    CompositePayloadConverter,
    DataConverter,
    JSONPlainPayloadConverter,
    JSONProtoPayloadConverter,
)

from agent_runner.domain.wire import without_own_fields


class StigmerProtoConverter(JSONProtoPayloadConverter):
    """`json/protobuf` with room for versions: unknown fields are ignored, ours are not sent.

    The other side's decoders refuse what they do not know.
    """

    def __init__(self) -> None:
        super().__init__(ignore_unknown_fields=True)

    def to_payload(self, value: Any) -> Payload | None:
        return super().to_payload(without_own_fields(value) if isinstance(value, Message) else value)


class StigmerPayloadConverter(CompositePayloadConverter):
    """The SDK's own list of converters, with ours for protobuf messages."""

    def __init__(self) -> None:
        super().__init__(
            BinaryNullPayloadConverter(),
            BinaryPlainPayloadConverter(),
            StigmerProtoConverter(),
            BinaryProtoPayloadConverter(),
            JSONPlainPayloadConverter(),
        )


DATA_CONVERTER = replace(DataConverter.default, payload_converter_class=StigmerPayloadConverter)
