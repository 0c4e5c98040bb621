"""Who may call: whoever shows the server's key; and as a runner, whoever shows that of the runners."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import grpc

from agent_runner.controlplane._status import status_of
from agent_runner.errors import AgentRunnerError, PermissionDeniedError, UnauthenticatedError

_OPEN: Final = ("/grpc.health.v1.Health/", "/grpc.reflection.")
"""Services without secrets, which probes and tools ask without a key."""
_OF_RUNNERS: Final = (
    "/agent_runner.v1.RunnerService/",
    "/ai.stigmer.agentic.agentexecution.v1.AgentExecutionCommandController/updateStatus",
)
"""What runners alone do: to take an execution over is to learn its variables and to speak for it."""
_SCHEME: Final = "bearer "

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a server.

    Attributes:
        api: opens everything but what runners alone do; None: that is open to everybody.
        runner: opens everything; None: runners show `api`, as everybody does.
    """

    api: str | None = field(repr=False)
    runner: str | None = field(repr=False, default=None)

    def __bool__(self) -> bool:
        return bool(self.api or self.runner)

    def refusal(self, method: str, shown: bytes | None) -> AgentRunnerError | None:
        """Why a call of the method with this key is refused; None: it is not."""
        if method.startswith(_OPEN) or _same(self.runner, shown):
            return None
        for_runners = bool(self.runner) and method.startswith(_OF_RUNNERS)
        if self.api and not _same(self.api, shown):
            return UnauthenticatedError()
        if for_runners:
            return PermissionDeniedError(
                "Only runners may do that. Set AGENT_RUNNER_RUNNER_KEY to the key the control plane was "
                "started with."
            )
        return None


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls whose `authorization: Bearer {key}` does not open the method."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        refusal = self._keys.refusal(handler_call_details.method, _shown(handler_call_details))
        return await continuation(handler_call_details) if refusal is None else _refusing(refusal)


def _same(key: str | None, shown: bytes | None) -> bool:
    # Bytes, since compare_digest takes no text beyond ASCII.
    return bool(key) and shown is not None and hmac.compare_digest(shown, (key or "").encode())


def _shown(details: grpc.HandlerCallDetails) -> bytes | None:
    for name, value in details.invocation_metadata:
        if name == "authorization" and isinstance(value, str) and value[:7].lower() == _SCHEME:
            return value[7:].strip().encode()
    return None


def _refusing(error: AgentRunnerError) -> Handler:
    async def refuse(_request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        status = status_of(error)
        await context.abort(status.code, status.details or "", status.trailing_metadata or ())

    return grpc.unary_unary_rpc_method_handler(refuse)
