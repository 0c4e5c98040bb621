"""Appending events as a runner does, without an agent: what is measured is the control plane."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from agent_runner.client.channels import Channel
from agent_runner.v1.events_pb2 import ExecutionEvent, MessageDelta, MessageStarted, PhaseChanged
from agent_runner.v1.runner_service_pb2 import (
    AppendEventsRequest,
    AppendEventsResponse,
    StartAttemptRequest,
    StartAttemptResponse,
)
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED, EXECUTION_IN_PROGRESS
from bench.product import Processes, client, make_agent
from bench.scripts import turn_script

_SERVICE = "/agent_runner.v1.RunnerService"
_CALL = timedelta(seconds=60)
_PIECE = "some words of an answer "


async def pending_executions(processes: Processes, folder: Path, count: int) -> list[str]:
    """Ids of executions nobody takes: there is no runner."""
    async with client(processes) as runner:
        agent_id = await make_agent(runner, turn_script(folder, rounds=0, tokens=1, delay_ms=0))
        made = [await runner.executions.start("go", agent_id=agent_id) for _ in range(count)]
    return [execution.metadata.id for execution in made]


class Appender:
    """One attempt at an execution, over a channel that may be shared."""

    def __init__(self, channel: Channel, execution_id: str) -> None:
        self._channel = channel
        self._execution_id = execution_id
        self._attempt = 0
        self._position = 0

    async def start(self) -> None:
        """Take the execution and begin a message."""
        request = StartAttemptRequest(execution_id=self._execution_id, worker="bench")
        answer = await self._channel.unary(
            f"{_SERVICE}/StartAttempt", request, StartAttemptResponse, timeout=_CALL
        )
        self._attempt = answer.attempt
        await self._append(
            [
                ExecutionEvent(phase_changed=PhaseChanged(phase=EXECUTION_IN_PROGRESS)),
                ExecutionEvent(message_started=MessageStarted(message_id="m")),
            ]
        )

    async def say(self, events: int) -> None:
        """Append that many pieces of text in one call; returns when they are durable."""
        await self._append([delta() for _ in range(events)])

    async def finish(self) -> None:
        await self._append([ExecutionEvent(phase_changed=PhaseChanged(phase=EXECUTION_COMPLETED))])

    async def _append(self, events: list[ExecutionEvent]) -> None:
        request = AppendEventsRequest(
            execution_id=self._execution_id, attempt=self._attempt, position=self._position, events=events
        )
        answer = await self._channel.unary(
            f"{_SERVICE}/AppendEvents", request, AppendEventsResponse, timeout=_CALL
        )
        self._position = answer.next_position


def delta(text: str = _PIECE) -> ExecutionEvent:
    return ExecutionEvent(message_delta=MessageDelta(message_id="m", text=text))
