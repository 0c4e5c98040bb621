"""The tokens by which an attempt shows that it is the one which took the execution."""

from __future__ import annotations

import hashlib
import hmac

from agent_runner.errors import FailedPreconditionError, FencedError, PermissionDeniedError
from agent_runner.ports.stores import LogHead
from agent_runner.services._live import Live


def digest_of(token: str) -> bytes:
    """What is kept of a token. It is as random as a key, so no salt and no slow hash are needed."""
    return hashlib.sha256(token.encode()).digest()


def is_token(token: str, digest: bytes) -> bool:
    """Whether it is the token that was kept; an attempt that was given none has no token at all."""
    return bool(token) and hmac.compare_digest(digest_of(token), digest)


def ensure_holds(live: Live, head: LogHead, attempt: int, token: str, what: str) -> None:
    """Return if the attempt holds a running execution and the caller is that attempt.

    Args:
        what: the caller wants to get at, in the plural.

    Raises:
        FencedError: another attempt holds it.
        FailedPreconditionError: it has ended.
        PermissionDeniedError: the token is not the one the attempt was given.
    """
    if head.attempt != attempt:
        raise FencedError(live.execution_id, attempt, head.attempt)
    if live.terminal:
        raise FailedPreconditionError(
            f"Execution {live.execution_id!r} has ended; its {what} are for no worker any more."
        )
    if not is_token(token, head.token):
        problem = "is another one" if token else "is missing"
        raise PermissionDeniedError(
            f"The {what} of execution {live.execution_id!r} are for the worker that took it: "
            f"`token` {problem}. Send the token which StartAttempt answered together with attempt {attempt}."
        )
