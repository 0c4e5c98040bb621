"""The workflow that runs an execution. It knows ids; what an agent says and does goes past it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    TimeoutError,
    TimeoutType,
    is_cancelled_exception,
)

with workflow.unsafe.imports_passed_through():
    from agent_runner.runner.payloads import (
        CLEANUP_SANDBOX,
        CLEANUP_WORKFLOW_TYPE,
        COMPLETE_EXTERNAL_ACTIVITY,
        ENSURE_THREAD,
        EXECUTE_GRAPHTON,
        EXECUTION_CANCELLED,
        EXECUTION_FAILED,
        EXECUTION_PAUSED,
        FILES_WORKFLOW_TYPE,
        FORGET_THREAD,
        RUNNER_TASK_QUEUE,
        SERVE_FILES,
        TASK_QUEUE_MEMO,
        UPDATE_EXECUTION_STATUS,
        WORKFLOW_TYPE,
        ExternalCompletion,
        InvokeOptions,
        SessionRemains,
    )
    from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
    from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
        EXECUTION_CANCELLED as CANCELLED,
    )
    from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
        EXECUTION_FAILED as FAILED,
    )

_SOON_AGAIN = RetryPolicy(
    # Of no use but to workers that were lost: those that fail or hand over say themselves how long to wait.
    # How often is settled where attempts are counted by how they ended, which Temporal does not do.
    initial_interval=timedelta(milliseconds=200),
    backoff_coefficient=1.0,
)
_STORE_RETRIES = RetryPolicy(
    initial_interval=timedelta(milliseconds=200),
    maximum_interval=timedelta(seconds=30),
    non_retryable_error_types=["NotFoundError"],
)
# Long back-offs become timers, so that the workflow's task is not kept open for them.
_LOCAL_RETRIES_WITHIN = timedelta(seconds=3)
_STORE_PATIENCE = timedelta(hours=24)
_WAITED_FOR_FILES = timedelta(seconds=10)


@workflow.defn(name=WORKFLOW_TYPE)
class InvokeAgentExecution:
    """EnsureThread, ExecuteGraphton, then the caller who waits, if one does.

    The status is the runner's to store. What the runner could not store because it is gone, was
    cancelled before it began, or gave up, is stored from here; a phase that is final stays.
    """

    @workflow.run
    async def run(self, execution: AgentExecution, options: InvokeOptions | None = None) -> None:
        settings = options or InvokeOptions()
        if settings.only_tell_caller:
            await self._tell_caller(execution, settings)
            return
        try:
            await self._execute(execution, settings)
        except BaseException as error:
            if isinstance(error, GeneratorExit):
                raise  # the worker lets go of a workflow that goes on elsewhere
            if _is_paused(error):
                return  # resuming starts another run
            ended = _how_it_ended(error)
            await self._store(execution.metadata.id, ended)
            await self._tell_caller(execution, settings)
            raise _as_workflow_failure(ended) from None
        await self._tell_caller(execution, settings)

    async def _execute(self, execution: AgentExecution, options: InvokeOptions) -> None:
        thread_id = await workflow.execute_local_activity(
            ENSURE_THREAD,
            args=[execution.spec.session_id, execution.spec.agent_id],
            result_type=str,
            start_to_close_timeout=timedelta(seconds=10),
        )
        running = workflow.start_activity(
            EXECUTE_GRAPHTON,
            args=[execution, thread_id],
            result_type=AgentExecutionStatus,
            task_queue=workflow.memo_value(TASK_QUEUE_MEMO, RUNNER_TASK_QUEUE, type_hint=str),
            start_to_close_timeout=timedelta(seconds=options.execution_timeout_seconds),
            heartbeat_timeout=timedelta(seconds=options.heartbeat_timeout_seconds),
            retry_policy=_retries(execution, options),
            # The runner keeps what was done until then and says so; only then it is over.
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )
        running.get_loop().set_exception_handler(_ignore_what_a_cancel_overtook)
        status: AgentExecutionStatus = await running
        if execution.spec.message:
            # The whole execution is the argument: the runner may be a foreign one, whose last update is
            # best effort, and which returns failures.
            await self._store(execution.metadata.id, status)
        if status.phase in (FAILED, CANCELLED):
            kind = EXECUTION_CANCELLED if status.phase == CANCELLED else EXECUTION_FAILED
            raise ApplicationError(status.error or "The runner reported a failure.", type=kind)

    async def _store(self, execution_id: str, status: AgentExecutionStatus) -> None:
        try:
            await workflow.execute_local_activity(
                UPDATE_EXECUTION_STATUS,
                args=[execution_id, status],
                start_to_close_timeout=timedelta(seconds=10),
                schedule_to_close_timeout=_STORE_PATIENCE,
                retry_policy=_STORE_RETRIES,
                local_retry_threshold=_LOCAL_RETRIES_WITHIN,
            )
        except ActivityError as error:
            workflow.logger.error("the end could not be stored: %s", error.cause)

    async def _tell_caller(self, execution: AgentExecution, options: InvokeOptions) -> None:
        if not options.waiting_caller:
            return
        await workflow.execute_activity(
            COMPLETE_EXTERNAL_ACTIVITY,
            ExternalCompletion(ExecutionId=execution.metadata.id),
            start_to_close_timeout=timedelta(seconds=60),
            schedule_to_close_timeout=_STORE_PATIENCE,
            retry_policy=_STORE_RETRIES,
        )


@workflow.defn(name=CLEANUP_WORKFLOW_TYPE)
class CleanUpSession:
    """Has a runner remove the sandbox and the thread of a session that was deleted."""

    @workflow.run
    async def run(self, remains: SessionRemains) -> None:
        if remains.wait_seconds:
            await workflow.sleep(remains.wait_seconds)
        # Foreign runners know sandboxes by their own ids.
        for name in dict.fromkeys((remains.session_id, remains.sandbox_id)):
            if name:
                await self._ask_runner(CLEANUP_SANDBOX, name)
        if remains.thread_id:
            await self._ask_runner(FORGET_THREAD, remains.thread_id)

    async def _ask_runner(self, activity: str, name: str) -> None:
        await workflow.execute_activity(
            activity,
            name,
            task_queue=workflow.memo_value(TASK_QUEUE_MEMO, RUNNER_TASK_QUEUE, type_hint=str),
            start_to_close_timeout=timedelta(minutes=10),
            schedule_to_close_timeout=_STORE_PATIENCE,
            heartbeat_timeout=timedelta(seconds=15),
            retry_policy=_STORE_RETRIES,
        )


@workflow.defn(name=FILES_WORKFLOW_TYPE)
class ServeFiles:
    """Has a runner come to the control plane for a task with files, where somebody waits for a moment."""

    @workflow.run
    async def run(self, task_id: str) -> None:
        try:
            await workflow.execute_activity(
                SERVE_FILES,
                task_id,
                task_queue=workflow.memo_value(TASK_QUEUE_MEMO, RUNNER_TASK_QUEUE, type_hint=str),
                schedule_to_start_timeout=_WAITED_FOR_FILES,
                start_to_close_timeout=timedelta(hours=12),
                heartbeat_timeout=timedelta(seconds=15),
                # The second one is for a runner that lost its connection before it was told the task.
                retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_attempts=2),
            )
        except ActivityError as error:
            # Whoever waits has noticed, and is told by the control plane.
            workflow.logger.info("files were not served: %s", error.cause)


def _retries(execution: AgentExecution, options: InvokeOptions) -> RetryPolicy:
    """When the turn is tried again."""
    if not execution.spec.message:
        return _SOON_AGAIN
    # A foreign runner may have it, whose attempts nobody else counts.
    return RetryPolicy(
        initial_interval=timedelta(milliseconds=200),
        maximum_interval=timedelta(seconds=30),
        maximum_attempts=options.max_attempts,
    )


def _ignore_what_a_cancel_overtook(loop: Any, context: dict[str, Any]) -> None:
    """A failure that comes together with the cancel is asked for by nobody: the cancel counts."""
    if not isinstance(context.get("exception"), ActivityError):
        loop.default_exception_handler(context)


def _is_paused(error: BaseException) -> bool:
    """Whether the runner stopped because somebody asked to pause, and nobody to cancel since."""
    cause = error.cause if isinstance(error, ActivityError) else None
    paused = isinstance(cause, ApplicationError) and cause.type == EXECUTION_PAUSED
    return paused and workflow.cancellation_reason() is None


def _how_it_ended(error: BaseException) -> AgentExecutionStatus:
    """The status to be stored, if the runner has not stored one."""
    cause = error.cause if isinstance(error, ActivityError) and error.cause else error
    cancelled = workflow.cancellation_reason() is not None or is_cancelled_exception(error)
    if cancelled or (isinstance(cause, ApplicationError) and cause.type == EXECUTION_CANCELLED):
        return AgentExecutionStatus(phase=CANCELLED, error="The execution was cancelled.")
    return AgentExecutionStatus(phase=FAILED, error=_explain(cause))


def _as_workflow_failure(ended: AgentExecutionStatus) -> Exception:
    if workflow.cancellation_reason() is not None and ended.phase == CANCELLED:
        return CancelledError(ended.error)
    kind = EXECUTION_CANCELLED if ended.phase == CANCELLED else EXECUTION_FAILED
    return ApplicationError(ended.error, type=kind, non_retryable=True)


def _explain(cause: BaseException) -> str:
    if isinstance(cause, TimeoutError):
        return _TIMEOUTS.get(cause.type or TimeoutType.START_TO_CLOSE, "It took too long.")
    if isinstance(cause, ApplicationError):
        return cause.message or str(cause.type)
    return str(cause) or type(cause).__name__


_TIMEOUTS = {
    TimeoutType.HEARTBEAT: (
        "The runner stopped answering, again and again, and nobody is left to try. Its log may say why."
    ),
    TimeoutType.START_TO_CLOSE: (
        "It took longer than an execution may. AGENT_RUNNER_EXECUTION_TIMEOUT_SECONDS is the limit."
    ),
    TimeoutType.SCHEDULE_TO_START: "No runner took it in time. Check that one is running.",
}
