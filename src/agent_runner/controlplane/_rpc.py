"""Services from their descriptors: which method is answered by which function."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from agent_runner.controlplane._calls import Behavior, Context, guarded
from agent_runner.errors import InvalidRequestError, SlowWatcherError
from agent_runner.services.secret_fields import shown

Unary = Callable[[Any], Awaitable[Message]]
"""From a request to its response."""
Deliver = Callable[[bytes, int], Awaitable[None]]
"""Sends a serialized response; the number is the `seq` a watcher goes on from when it is cut off."""
Streaming = Callable[[Any, Deliver], Awaitable[None]]
"""Answers a request by delivering serialized responses, until it returns."""
Methods = Mapping[str, Unary]
Streams = Mapping[str, Streaming]


def rpc_service(
    descriptor: ServiceDescriptor,
    methods: Methods,
    streams: Streams | None = None,
    *,
    slow_after: timedelta = timedelta(seconds=30),
) -> grpc.GenericRpcHandler:
    """The handler of a service. Methods without a function answer UNIMPLEMENTED.

    Args:
        slow_after: how long a watcher may take no message before it is cut off.
    """
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in descriptor.methods:
        name = f"/{descriptor.full_name}/{method.name}"
        if method.client_streaming:
            continue  # gRPC itself says that there is no such method
        if streams and method.name in streams:
            behavior = _streaming(method, streams[method.name], slow_after)
            handlers[method.name] = grpc.unary_stream_rpc_method_handler(guarded(name, behavior))
        else:
            answer = methods.get(method.name)
            behavior = _missing(name) if answer is None else _unary(method, answer)
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(guarded(name, behavior))
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)


# Requests are parsed here rather than by gRPC, which answers INTERNAL to bytes it cannot read.


def _unary(method: MethodDescriptor, answer: Unary) -> Behavior:
    parse = _parser(method)

    async def behavior(request: bytes, _context: Context) -> bytes:
        return shown(await answer(parse(request))).SerializeToString()

    return behavior


def _streaming(method: MethodDescriptor, answer: Streaming, slow_after: timedelta) -> Behavior:
    parse, limit = _parser(method), slow_after.total_seconds()

    async def behavior(request: bytes, context: Context) -> None:
        async def deliver(response: bytes, seq: int) -> None:
            try:
                async with asyncio.timeout(limit):
                    await context.write(response)
            except TimeoutError:
                raise SlowWatcherError(seq) from None

        await answer(parse(request), deliver)

    return behavior


def _missing(name: str) -> Behavior:
    text = f"This version of the server does not answer {name} yet."

    async def behavior(_request: bytes, context: Context) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, text)

    return behavior


def _parser(method: MethodDescriptor) -> Callable[[bytes], Message]:
    message = GetMessageClass(method.input_type)

    def parse(request: bytes) -> Message:
        try:
            return message.FromString(request)
        except DecodeError:
            raise InvalidRequestError.of(
                "request", f"is not a {method.input_type.full_name} in protobuf's binary format"
            ) from None

    return parse
