"""Status codes of the server back into our errors, and what only a client can meet.

AgentRunnerError
├── UnavailableError
│   ├── ServerUnreachableError   nobody answers at the address
│   └── DeadlineError            no answer in time
├── UnsupportedError             the server does not know this call
└── RemoteError                  any other failure of the server
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import grpc

from agent_runner import errors
from agent_runner.errors import AgentRunnerError, UnavailableError, Violation

DETAILS_KEY = "grpc-status-details-bin"


class ServerUnreachableError(UnavailableError):
    """Nobody answers at the address."""

    def __init__(self, address: str, reason: str = "") -> None:
        self.address = address
        super().__init__(f"No server answers at {address}." + (f" {reason}" if reason else ""))


class DeadlineError(UnavailableError):
    """The server took the call but did not answer in time; whether it took effect is not known."""

    def __init__(self, address: str) -> None:
        super().__init__(f"The server at {address} did not answer in time.")


class UnsupportedError(AgentRunnerError):
    """The server does not know this call: another product, or an older version."""


_MAY_PASS = frozenset({"CANCELLED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNKNOWN"})


class RemoteError(AgentRunnerError):
    """The server failed in a way no other type here stands for.

    Attributes:
        code: name of the gRPC status code, such as `INTERNAL`.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.retryable = code in _MAY_PASS
        super().__init__(message)


_TYPES: dict[grpc.StatusCode, type[AgentRunnerError]] = {
    grpc.StatusCode.NOT_FOUND: errors.NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExistsError,
    grpc.StatusCode.ABORTED: errors.ConflictError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPreconditionError,
    grpc.StatusCode.UNAUTHENTICATED: errors.UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDeniedError,
    grpc.StatusCode.UNAVAILABLE: errors.UnavailableError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
}

_CODES: dict[type[AgentRunnerError], str] = {
    errors.InvalidRequestError: "INVALID_ARGUMENT",
    errors.SettingsError: "INVALID_ARGUMENT",
    DeadlineError: "DEADLINE_EXCEEDED",
    **{kind: code.name for code, kind in _TYPES.items()},
}


def code_of(error: AgentRunnerError) -> str:
    """Name of the status code an error stands for; `UNKNOWN` where there is none."""
    if isinstance(error, RemoteError):
        return error.code
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind]
    return "UNKNOWN"


def from_rpc(error: grpc.aio.AioRpcError, address: str) -> AgentRunnerError:
    """Our error for what a call ended with; the server's own words are kept."""
    code, text = error.code(), error.details() or ""
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return errors.InvalidRequestError(violations_of(error) or [Violation("request", text)])
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(address)
    if code is grpc.StatusCode.UNAVAILABLE and (problem := _connection_problem(text)) is not None:
        return ServerUnreachableError(address, problem)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return UnsupportedError(f"The server at {address} does not know this call: {text or 'no details'}.")
    kind = _TYPES.get(code)
    if kind is None:
        return RemoteError(code.name, text or f"The server at {address} answered {code.name}.")
    return _worded(kind, text)


def violations_of(error: grpc.aio.AioRpcError) -> list[Violation]:
    """Fields named in the `BadRequest` details of a status; empty without any."""
    raw = next((value for key, value in _trailers(error) if key == DETAILS_KEY), None)
    if not isinstance(raw, bytes):
        return []
    from google.rpc import error_details_pb2, status_pb2

    status, found = status_pb2.Status.FromString(raw), []
    for detail in status.details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            found += [Violation(v.field, v.description, v.reason) for v in bad.field_violations]
    return found


def _trailers(error: grpc.aio.AioRpcError) -> Iterable[tuple[str, str | bytes]]:
    return error.trailing_metadata() or ()


# A connection that could not be made, or broke, has the same code as a server which says that it is not
# ready. Only the words of gRPC's core tell them apart.
_BROKEN = re.compile(
    r"failed to connect|errors? resolving|DNS resolution|Socket closed|Connection (reset|closed|refused)"
    r"|recvmsg|sendmsg|Broken pipe|Transport closed|GOAWAY|keepalive|too_many_pings|Stream removed"
    r"|ipv[46]:|unix:|Handshake|handshake|Channel closed|End of TCP stream|Endpoint closing",
)
_REASONS = (
    ("resolv", "The name is not known."),
    ("http1.x", "What listens there speaks HTTP/1, not gRPC."),
    ("Expected SETTINGS", "What listens there does not speak gRPC."),
    ("andshake", "The TLS handshake failed."),
    ("CERTIFICATE", "Its certificate is not trusted."),
)


def _connection_problem(text: str) -> str | None:
    """Why there is no connection, empty for the usual reason; None when the server itself answered."""
    if not _BROKEN.search(text):
        return None
    return next((words for mark, words in _REASONS if mark in text), "")


def _worded(kind: type[AgentRunnerError], text: str) -> AgentRunnerError:
    """An error of ours in the words of the server, which has put in kind, name and what to do."""
    error = kind.__new__(kind)
    Exception.__init__(error, text or kind.__doc__ or kind.__name__)
    if isinstance(error, errors.NotFoundError):
        error.kind = error.name = ""
    return error
