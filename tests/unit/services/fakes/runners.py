"""A runner reduced to what it tells the control plane."""

from __future__ import annotations

from agent_runner.services.container import Services
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.runner_service_pb2 import (
    AppendEventsRequest,
    AppendEventsResponse,
    StartAttemptRequest,
    StartAttemptResponse,
)


class Runner:
    """One attempt at an execution."""

    def __init__(self, services: Services, execution_id: str) -> None:
        self._services = services
        self.execution_id = execution_id
        self.granted = StartAttemptResponse()
        self.position = 0

    async def start(self, *, run: str = "run-1", attempt: int = 1) -> StartAttemptResponse:
        self.granted = await self._services.events.start_attempt(
            StartAttemptRequest(
                execution_id=self.execution_id, worker="test", workflow_run_id=run, activity_attempt=attempt
            )
        )
        self.position = 0
        return self.granted

    async def send(self, *events: ExecutionEvent, position: int | None = None) -> AppendEventsResponse:
        answer = await self._services.events.append(
            AppendEventsRequest(
                execution_id=self.execution_id,
                attempt=self.granted.attempt,
                position=self.position if position is None else position,
                events=events,
            )
        )
        self.position = answer.next_position
        return answer
