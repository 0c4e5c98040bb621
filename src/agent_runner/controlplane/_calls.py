"""What happens around every call: errors become statuses, and the log gets a line."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn, TypeAlias

import grpc
import structlog

from agent_runner.controlplane._status import status_of
from agent_runner.errors import AgentRunnerError

log = structlog.get_logger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Behavior: TypeAlias = Callable[[bytes, Context], Awaitable[Any]]

_OOPS: Final = "The server failed in a way it should not have. Its log has the details."


def guarded(method: str, behavior: Behavior) -> Behavior:
    """Run a method's behavior; what it raises ends the call with the right status."""

    async def call(request: bytes, context: Context) -> Any:
        started = time.perf_counter()
        try:
            response = await behavior(request, context)
        except AgentRunnerError as error:
            status = status_of(error)
            _note(method, status.code.name, started, reason=type(error).__name__)
            await _abort(context, status)
        except (grpc.aio.AbortError, grpc.aio.AioRpcError):
            raise  # the behavior has ended the call itself
        # The edge: whatever is wrong inside, the process and the other calls go on.
        except Exception:
            if context.cancelled():
                raise
            log.exception("call failed", method=method)
            await context.abort(grpc.StatusCode.INTERNAL, _OOPS)
        else:
            _note(method, "OK", started)
            return response

    return call


async def _abort(context: Context, status: grpc.Status) -> NoReturn:
    await context.abort(status.code, status.details or "", status.trailing_metadata or ())


def _note(method: str, code: str, started: float, **more: str) -> None:
    seconds = round(time.perf_counter() - started, 6)
    log.debug("call answered", method=method, code=code, seconds=seconds, **more)
