"""The API for callers in the same process: the same parsing, rules and statuses, without a socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio

Behavior = Callable[[bytes, Any], Awaitable[bytes]]


class LocalCalls:
    """Answers calls with one request and one response.

    Everything a caller in another process gets is the same: requests and responses are serialized, so
    that nobody holds a message of the other side, and failures are statuses. Only the key is not asked
    for, since who is in the process has it.
    """

    def __init__(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._handlers = tuple(handlers)
        self._behaviors: dict[str, Behavior | None] = {}

    def answers(self, method: str) -> bool:
        """Whether it is a call of this kind; streams and unknown methods are not."""
        return self._behavior(method) is not None

    async def call(self, method: str, request: bytes) -> bytes:
        """The serialized response.

        Raises:
            grpc.aio.AioRpcError: the status the call ended with.
        """
        behavior = self._behavior(method)
        if behavior is None:
            raise _error(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not answered here.")
        return await behavior(request, _LocalContext())

    def _behavior(self, method: str) -> Behavior | None:
        if method not in self._behaviors:
            details = _Details(method)
            found = (handler.service(details) for handler in self._handlers)
            self._behaviors[method] = next((one.unary_unary for one in found if one is not None), None)
        return self._behaviors[method]


class _Details(grpc.HandlerCallDetails):
    """Names a method, which is all that handlers look at."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


class _LocalContext:
    """What behaviors use of `grpc.aio.ServicerContext`."""

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> NoReturn:
        raise _error(code, details, trailing_metadata)

    def cancelled(self) -> bool:
        return False


def _error(
    code: grpc.StatusCode, details: str, trailers: Sequence[tuple[str, str | bytes]] = ()
) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details)
