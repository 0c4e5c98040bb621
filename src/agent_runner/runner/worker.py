"""The two workers: of the control plane, and of the runner."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version

import structlog
from temporalio.client import Client
from temporalio.worker import (
    FixedSizeSlotSupplier,
    PollerBehaviorSimpleMaximum,
    UnsandboxedWorkflowRunner,
    Worker,
    WorkerTuner,
)

from agent_runner.ports.workflows import RUNNER_TASK_QUEUE, WORKFLOW_TASK_QUEUE
from agent_runner.runner.activities.executions import EndingActivities, ExecutionEnds
from agent_runner.runner.activities.files import FileActivities
from agent_runner.runner.activities.graphton import ExecutionActivities
from agent_runner.runner.activities.sandboxes import SandboxActivities
from agent_runner.runner.activities.threads import ThreadActivities, ensure_thread
from agent_runner.runner.attempts import Parts
from agent_runner.runner.slots import MemorySlots
from agent_runner.runner.workflows import CleanUpSession, InvokeAgentExecution, ServeFiles

log = structlog.get_logger(__name__)

# A cancel that comes when the attempt has just ended; nobody can do anything about it.
warnings.filterwarnings("ignore", "Cannot find activity to cancel", UserWarning)

# Below what `heartbeats` does, which decides how often; the default would hold them back.
_HEARTBEAT_THROTTLE = timedelta(milliseconds=200)
# With the default of five, workflows under load are closed minutes after their executions have ended,
# and what is started meanwhile waits behind them.
_WORKFLOW_POLLERS = PollerBehaviorSimpleMaximum(maximum=20)
# Left to itself the SDK reads and hashes the code of every loaded module, which takes a second.
_BUILD_ID = f"agent-runner-{version('agent-runner-platform')}"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a runner works.

    Attributes:
        concurrency: executions at a time.
        short_of_memory: while it is, no further ones are taken; None never looks.
        grace: how long running turns get to reach their next super-step when the worker stops.
    """

    task_queue: str = RUNNER_TASK_QUEUE
    concurrency: int = 50
    short_of_memory: Callable[[], bool] | None = None
    grace: timedelta = timedelta(seconds=5)


class _Served:
    """A worker of the SDK from `start` to `stop`."""

    def __init__(self, worker: Worker, name: str) -> None:
        self._worker = worker
        self._name = name
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to poll; returns at once."""
        self._running = asyncio.create_task(self._worker.run(), name=self._name)

    async def wait(self) -> None:
        """Return when it was stopped.

        Raises:
            Exception: what ended it by itself, such as a namespace that is not there.
        """
        assert self._running is not None
        await asyncio.shield(self._running)

    async def stop(self) -> None:
        """Take nothing more, let what runs end within the grace, then return."""
        if self._running is None:
            return
        if not self._running.done():
            await self._worker.shutdown()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        log.info("worker stopped", worker=self._name)

    async def __aenter__(self) -> None:
        await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


class ControlPlaneWorker(_Served):
    """Runs the workflow and what it does in the control plane.

    Must have the client by which workflows are started, or their start is not eager.
    """

    def __init__(self, client: Client, ends: ExecutionEnds, *, task_queue: str = WORKFLOW_TASK_QUEUE) -> None:
        activities = EndingActivities(client, ends)
        worker = Worker(
            client,
            task_queue=task_queue,
            build_id=_BUILD_ID,
            workflows=[InvokeAgentExecution, CleanUpSession, ServeFiles],
            activities=[ensure_thread, activities.update_status, activities.complete],
            # The import contract keeps the workflow pure; the sandbox would cost two thirds on top.
            workflow_runner=UnsandboxedWorkflowRunner(),
            workflow_task_poller_behavior=_WORKFLOW_POLLERS,
            graceful_shutdown_timeout=timedelta(seconds=5),
        )
        super().__init__(worker, "control plane worker")


class RunnerWorker(_Served):
    """Runs agents, for our control plane or any server of the Stigmer API."""

    def __init__(self, client: Client, parts: Parts, settings: WorkerSettings | None = None) -> None:
        chosen = settings or WorkerSettings()
        worker = Worker(
            client,
            task_queue=chosen.task_queue,
            build_id=_BUILD_ID,
            activities=[
                ensure_thread,
                ExecutionActivities(parts).execute,
                SandboxActivities(parts.sandboxes).cleanup,
                ThreadActivities(parts.checkpoints).forget,
                FileActivities(parts.sandboxes, parts.file_tasks).serve,
            ],
            tuner=_tuner(chosen),
            max_heartbeat_throttle_interval=_HEARTBEAT_THROTTLE,
            default_heartbeat_throttle_interval=_HEARTBEAT_THROTTLE,
            graceful_shutdown_timeout=chosen.grace,
        )
        super().__init__(worker, "runner worker")


def _tuner(settings: WorkerSettings) -> WorkerTuner:
    fixed = FixedSizeSlotSupplier(settings.concurrency)
    short = settings.short_of_memory
    return WorkerTuner.create_composite(
        workflow_supplier=fixed,
        activity_supplier=fixed if short is None else MemorySlots(settings.concurrency, short),
        local_activity_supplier=fixed,
        nexus_supplier=fixed,
    )
