"""Who may call: whoever shows the server's key."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import grpc

from agent_runner.controlplane._status import status_of
from agent_runner.errors import UnauthenticatedError

_OPEN: Final = ("/grpc.health.v1.Health/", "/grpc.reflection.")
"""Services without secrets, which probes and tools ask without a key."""
_SCHEME: Final = "bearer "

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without `authorization: Bearer {key}`."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()
        self._refusal: Handler = grpc.unary_unary_rpc_method_handler(_refuse)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        if handler_call_details.method.startswith(_OPEN) or self._shows_key(handler_call_details):
            return await continuation(handler_call_details)
        return self._refusal

    def _shows_key(self, details: grpc.HandlerCallDetails) -> bool:
        for name, value in details.invocation_metadata:
            if name == "authorization" and isinstance(value, str) and value[:7].lower() == _SCHEME:
                # Bytes, since compare_digest takes no text beyond ASCII.
                return hmac.compare_digest(value[7:].strip().encode(), self._key)
        return False


async def _refuse(_request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    status = status_of(UnauthenticatedError())
    await context.abort(status.code, status.details or "", status.trailing_metadata or ())
