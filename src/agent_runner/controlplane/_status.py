"""Our errors as gRPC statuses: one table, and details a program can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from agent_runner import errors
from agent_runner.errors import AgentRunnerError, InvalidRequestError

CODES: Final[Mapping[type[AgentRunnerError], grpc.StatusCode]] = {
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.ConflictError: grpc.StatusCode.ABORTED,
    errors.FencedError: grpc.StatusCode.ABORTED,
    errors.PositionError: grpc.StatusCode.OUT_OF_RANGE,
    errors.FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SecretUnreadableError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.SlowWatcherError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.WorkflowServiceUnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.SandboxUnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.SandboxRefusedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ModelError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ModelUnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.McpServerError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LimitReachedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.McpServerError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ArtifactError: grpc.StatusCode.DATA_LOSS,
    errors.SettingsError: grpc.StatusCode.FAILED_PRECONDITION,
}

DOMAIN: Final = "agent-runner"
"""Domain of `google.rpc.ErrorInfo`, whose reason is the name of the error's type."""

# A status travels in HTTP/2 headers, of which clients take 8 KiB. The text is in there twice, as it is
# and in the details, and takes three bytes for each that is not ASCII.
_MOST_TEXT: Final = 800
_MOST_VIOLATIONS: Final = 8
_MOST_FIELD_TEXT: Final = 160


def code_of(error: AgentRunnerError) -> grpc.StatusCode:
    """The code of the error's type, or of the nearest type above it."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), grpc.StatusCode.UNKNOWN)


def status_of(error: AgentRunnerError) -> grpc.Status:
    """The status with its details: the fields that are wrong, and the kind of error."""
    code: int = code_pb2.Code.Value(code_of(error).name)
    info = error_details_pb2.ErrorInfo(
        reason=type(error).__name__.removesuffix("Error"), domain=DOMAIN, metadata=_facts(error)
    )
    details = [_packed(info)]
    if isinstance(error, InvalidRequestError):
        details.append(_packed(_bad_request(error)))
    text = _clipped(str(error), _MOST_TEXT)
    status: grpc.Status = rpc_status.to_status(status_pb2.Status(code=code, message=text, details=details))
    return status


def _facts(error: AgentRunnerError) -> Mapping[str, str]:
    if isinstance(error, errors.PositionError):
        return {"expected": str(error.expected)}
    return {"retryable": "true"} if error.retryable else {}


def _bad_request(error: InvalidRequestError) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=_clipped(violation.field, _MOST_FIELD_TEXT),
                description=_clipped(violation.problem, _MOST_FIELD_TEXT),
                reason=_clipped(violation.rule, _MOST_FIELD_TEXT),
            )
            for violation in error.violations[:_MOST_VIOLATIONS]
        ]
    )


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _clipped(text: str, most: int) -> str:
    """At most that many bytes of UTF-8."""
    raw = text.encode()
    return text if len(raw) <= most else raw[: most - 3].decode(errors="ignore") + "…"
