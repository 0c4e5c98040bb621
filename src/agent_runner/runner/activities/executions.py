"""Activities of the control plane's own worker: storing an end, and telling who waits for it."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Protocol

import structlog
from google.protobuf.json_format import MessageToDict
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from agent_runner.domain.wire import without_own_fields
from agent_runner.runner.failures import retry_contract, short
from agent_runner.runner.payloads import (
    COMPLETE_EXTERNAL_ACTIVITY,
    EXECUTION_CANCELLED,
    EXECUTION_FAILED,
    UPDATE_EXECUTION_STATUS,
    ExternalCompletion,
)
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_CANCELLED as CANCELLED
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED as COMPLETED

log = structlog.get_logger(__name__)


class ExecutionEnds(Protocol):
    """What these activities need of the services, in the same process."""

    async def read(self, execution_id: str) -> AgentExecution:
        """The execution with its newest status and its callback token.

        Raises:
            NotFoundError: there is none.
        """
        ...

    async def end(self, execution_id: str, status: AgentExecutionStatus) -> None:
        """Store the status a runner could not; nothing happens after a terminal phase.

        Raises:
            NotFoundError: there is no such execution.
        """
        ...

    async def told(self, execution_id: str) -> None:
        """Note that whoever waited for the end has been told."""
        ...


class EndingActivities:
    """Holds the services, and the client by which waiting activities of others are completed."""

    def __init__(self, client: Client, ends: ExecutionEnds) -> None:
        self._client = client
        self._ends = ends

    @activity.defn(name=UPDATE_EXECUTION_STATUS)
    async def update_status(self, execution_id: str, status: AgentExecutionStatus) -> None:
        """Store how an execution ended, unless it is stored already."""
        with retry_contract():
            await self._ends.end(execution_id, status)

    @activity.defn(name=COMPLETE_EXTERNAL_ACTIVITY)
    async def complete(self, request: ExternalCompletion) -> None:
        """Give a waiting caller the final execution, or the failure.

        The result is plain JSON as the Stigmer server sends it: names as in the protos, enums as
        numbers; without audit, and without what is ours alone.
        """
        if request.CallbackToken:
            token = _decoded(request.CallbackToken)
            failure = _failure(str(request.Error)) if request.Error else None
            await self._answer(token, request.Result, failure)
            return
        with retry_contract():
            execution = await self._ends.read(request.ExecutionId)
        await self._answer(execution.spec.callback_token, as_result(execution), _failure_of(execution))
        with retry_contract():
            await self._ends.told(request.ExecutionId)

    async def _answer(self, token: bytes, result: Any, failure: ApplicationError | None) -> None:
        handle = self._client.get_async_activity_handle(task_token=token)
        try:
            if failure is None:
                await handle.complete(result)
            else:
                await handle.fail(failure)
        except RPCError as error:
            if error.status not in (RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT):
                raise
            # The caller was answered before, gave up, or never was: trying again changes nothing.
            log.warning("nobody waits for the execution", reason=str(error))


def as_result(execution: AgentExecution) -> dict[str, Any]:
    """The execution as a waiting caller gets it."""
    shown = without_own_fields(execution)
    shown.spec.ClearField("callback_token")
    shown.spec.ClearField("runtime_env")
    shown.status.ClearField("callback_token")
    shown.status.ClearField("audit")
    return MessageToDict(shown, preserving_proto_field_name=True, use_integers_for_enums=True)


def _failure_of(execution: AgentExecution) -> ApplicationError | None:
    status = execution.status
    if status.phase == COMPLETED:
        return None
    text = status.error or "The execution ended without saying why."
    return _failure(text, EXECUTION_CANCELLED if status.phase == CANCELLED else EXECUTION_FAILED)


def _failure(text: str, kind: str = EXECUTION_FAILED) -> ApplicationError:
    return ApplicationError(short(text), type=kind, non_retryable=True)


def _decoded(token: str) -> bytes:
    try:
        return base64.b64decode(token, validate=True)
    except binascii.Error as error:
        raise _failure("CallbackToken is not base64.", "InvalidRequestError") from error
