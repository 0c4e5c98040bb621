"""An execution's status as the fold of its events.

`StatusFold` is the fold with an index, for whoever applies events one by one; `fold` and `apply` are
the same rule as plain functions. Times come from the events, so folding is repeatable.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

from agent_runner.domain.attempts import count_end, count_start
from agent_runner.domain.tool_components import component_metadata
from agent_runner.v1.events_pb2 import (
    AttemptEnded,
    AttemptStarted,
    CancelRequested,
    ExecutionEvent,
    JoinedExecution,
    MessageCompleted,
    MessageDelta,
    MessageStarted,
    Paused,
    PauseRequested,
    PhaseChanged,
    Resumed,
    RunDescribed,
    StatusMerged,
    SteeringJoined,
    SteeringRequested,
    SubAgentCompleted,
    SubAgentStarted,
    TodosChanged,
    ToolCallCompleted,
    ToolCallFailed,
    ToolCallOutput,
    ToolCallStarted,
    UsageReported,
    WarningRaised,
)
from agent_runner.v1.status_pb2 import RunStatus
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import (
    AgentExecutionStatus,
    AgentMessage,
    SubAgentExecution,
    ToolCall,
)
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_COMPLETED,
    EXECUTION_FAILED,
    EXECUTION_IN_PROGRESS,
    EXECUTION_PHASE_UNSPECIFIED,
    SUB_AGENT_COMPLETED,
    SUB_AGENT_FAILED,
    SUB_AGENT_IN_PROGRESS,
    SUB_AGENT_PENDING,
    TOOL_CALL_COMPLETED,
    TOOL_CALL_FAILED,
    TOOL_CALL_PENDING,
    TOOL_CALL_RUNNING,
    ExecutionPhase,
)

TERMINAL_PHASES: frozenset[ExecutionPhase.ValueType] = frozenset(
    {EXECUTION_COMPLETED, EXECUTION_FAILED, EXECUTION_CANCELLED}
)
INTERRUPTED = "The call was cut off; whether it took effect is not known."
_MOST_OUTPUT = 64 * 1024
_MOST_WARNINGS = 100


def is_terminal(phase: ExecutionPhase.ValueType) -> bool:
    return phase in TERMINAL_PHASES


def fold(status: AgentExecutionStatus, events: Iterable[ExecutionEvent]) -> AgentExecutionStatus:
    """The status after the events; the one given stays as it is."""
    result = AgentExecutionStatus()
    result.CopyFrom(status)
    folding = StatusFold(result)
    for event in events:
        folding.apply(event)
    return folding.status


def apply(status: AgentExecutionStatus, event: ExecutionEvent) -> None:
    """Apply one event in place. For many events use `StatusFold`, which does not search each time."""
    folding = StatusFold(status)
    folding.apply(event)
    _ = folding.status


class StatusFold:
    """Applies events to one status, in place.

    Text deltas are gathered and joined when `status` is read, so a long message costs its length once.
    """

    def __init__(self, status: AgentExecutionStatus | None = None) -> None:
        self._status = AgentExecutionStatus() if status is None else status
        self._pieces: dict[str, list[str]] = {}
        self._index()

    @property
    def status(self) -> AgentExecutionStatus:
        """The status so far; the same object each time, to be copied before it is kept."""
        for message_id, pieces in self._pieces.items():
            message = self._messages.get(message_id)
            if message is not None:
                message.content += "".join(pieces)
        self._pieces.clear()
        return self._status

    @property
    def phase(self) -> ExecutionPhase.ValueType:
        return self._status.phase

    @property
    def last_seq(self) -> int:
        return self._status.run.last_seq

    @property
    def run(self) -> RunStatus:
        """What the status holds of the run; reading it joins no texts."""
        return self._status.run

    def apply(self, event: ExecutionEvent) -> None:
        """Apply one event. After a terminal phase only `last_seq` moves."""
        if event.seq:
            self._status.run.last_seq = event.seq
        if is_terminal(self._status.phase):
            return
        kind = event.WhichOneof("event")
        if kind is not None:
            getattr(self, f"_{kind}")(event, getattr(event, kind))

    def _index(self) -> None:
        status = self._status
        self._sub_agents: dict[str, SubAgentExecution] = {s.id: s for s in status.sub_agent_executions}
        self._messages: dict[str, AgentMessage] = {m.id: m for m in status.messages if m.id}
        self._message_calls: dict[str, ToolCall] = {}
        for sub_agent in status.sub_agent_executions:
            self._messages.update({m.id: m for m in sub_agent.messages if m.id})
        for message in (*status.messages, *(m for s in status.sub_agent_executions for m in s.messages)):
            self._message_calls.update({call.id: call for call in message.tool_calls})
        self._calls: dict[str, ToolCall] = {call.id: call for call in status.tool_calls}

    def _phase_changed(self, event: ExecutionEvent, change: PhaseChanged) -> None:
        status = self._status
        status.phase = change.phase
        if change.phase == EXECUTION_IN_PROGRESS and not status.started_at:
            status.started_at = event.time
        if is_terminal(change.phase):
            status.error, status.completed_at = change.error, event.time
            status.run.queue_position = 0
            status.run.pause_requested = status.run.paused = status.run.held = False
            status.run.pause_reason = ""
            self._finish_everything(event.time)

    def _finish_everything(self, time: str) -> None:
        """What a terminal phase leaves open is closed: nothing shows as running after the end."""
        for message in self._messages.values():
            message.streaming = False
        self._interrupt_calls(time)
        for sub_agent in self._sub_agents.values():
            if sub_agent.status in (SUB_AGENT_IN_PROGRESS, SUB_AGENT_PENDING):
                sub_agent.status, sub_agent.completed_at = SUB_AGENT_FAILED, time
                sub_agent.error = "The execution ended first."

    def _interrupt_calls(self, time: str) -> None:
        for call_id, call in self._calls.items():
            if call.status in (TOOL_CALL_PENDING, TOOL_CALL_RUNNING):
                for shown in self._shown(call_id):
                    shown.status, shown.error, shown.completed_at = TOOL_CALL_FAILED, INTERRUPTED, time

    def _attempt_started(self, event: ExecutionEvent, started: AttemptStarted) -> None:
        status = self._status
        _ = self.status  # pieces of withdrawn messages must not outlive them
        count_start(status, event.attempt, started)
        _remove_streaming(status.messages)
        for sub_agent in status.sub_agent_executions:
            _remove_streaming(sub_agent.messages)
        self._index()
        self._interrupt_calls(event.time)

    def _attempt_ended(self, _event: ExecutionEvent, ended: AttemptEnded) -> None:
        count_end(self._status, ended)

    def _message_started(self, event: ExecutionEvent, started: MessageStarted) -> None:
        known = self._messages.get(started.message_id)
        if known is not None:  # asked again by a resumed attempt
            self._pieces.pop(started.message_id, None)
            known.content, known.streaming = started.content, True
            return
        message = self._message_list(event.sub_agent_id).add(
            type=started.type,
            content=started.content,
            timestamp=event.time,
            id=started.message_id,
            streaming=True,
        )
        self._messages[started.message_id] = message

    def _message_list(self, sub_agent_id: str) -> RepeatedCompositeFieldContainer[AgentMessage]:
        sub_agent = self._sub_agents.get(sub_agent_id)
        return self._status.messages if sub_agent is None else sub_agent.messages

    def _message_delta(self, event: ExecutionEvent, delta: MessageDelta) -> None:
        if delta.message_id in self._messages:
            self._pieces.setdefault(delta.message_id, []).append(delta.text)

    def _message_completed(self, event: ExecutionEvent, completed: MessageCompleted) -> None:
        message = self._messages.get(completed.message_id)
        if message is None:
            return
        pieces = self._pieces.pop(completed.message_id, [])
        message.content = completed.content or message.content + "".join(pieces)
        message.streaming = False

    def _shown(self, tool_call_id: str) -> list[ToolCall]:
        """Both places a call shows in: the list of calls, and the message that asked for it."""
        places = (self._calls.get(tool_call_id), self._message_calls.get(tool_call_id))
        return [call for call in places if call is not None]

    def _tool_call_started(self, event: ExecutionEvent, started: ToolCallStarted) -> None:
        call = ToolCall(
            id=started.tool_call_id,
            name=started.name,
            args=started.args,
            status=TOOL_CALL_RUNNING,
            component_metadata=component_metadata(started.name, of_sub_agent=bool(event.sub_agent_id)),
            started_at=event.time,
            sub_agent_id=event.sub_agent_id,
        )
        again = self._shown(started.tool_call_id)
        for shown in again:
            shown.CopyFrom(call)
        if again:
            return
        self._calls[call.id] = self._status.tool_calls.add()
        self._calls[call.id].CopyFrom(call)
        message = self._messages.get(started.message_id)
        if message is not None:
            self._message_calls[call.id] = message.tool_calls.add()
            self._message_calls[call.id].CopyFrom(call)

    def _tool_call_output(self, event: ExecutionEvent, output: ToolCallOutput) -> None:
        call = self._calls.get(output.tool_call_id)
        if call is not None:
            call.output = (call.output + output.text)[-_MOST_OUTPUT:]

    def _tool_call_completed(self, event: ExecutionEvent, completed: ToolCallCompleted) -> None:
        for call in self._shown(completed.tool_call_id):
            call.status, call.completed_at = TOOL_CALL_COMPLETED, event.time
            call.result, call.artifact_key = completed.result, completed.artifact_key
            call.ClearField("error")
            call.ClearField("output")

    def _tool_call_failed(self, event: ExecutionEvent, failed: ToolCallFailed) -> None:
        for call in self._shown(failed.tool_call_id):
            call.status, call.completed_at = TOOL_CALL_FAILED, event.time
            call.error, call.artifact_key = failed.error, failed.artifact_key
            if not failed.interrupted:
                call.ClearField("output")

    def _todos_changed(self, event: ExecutionEvent, changed: TodosChanged) -> None:
        before = {key: item for key, item in self._status.todos.items()}  # noqa: C416 (a proto map)
        kept = {item.id for item in changed.todos}
        for item in changed.todos:
            old = before.get(item.id)
            shown = self._status.todos[item.id]
            same = old is not None and (old.content, old.status) == (item.content, item.status)
            created = old.created_at if old is not None and old.created_at else event.time
            updated = old.updated_at if old is not None and same else event.time
            shown.CopyFrom(item)
            shown.created_at, shown.updated_at = created, updated
        for key in set(before) - kept:
            del self._status.todos[key]

    def _sub_agent_started(self, event: ExecutionEvent, started: SubAgentStarted) -> None:
        sub_agent = self._sub_agents.get(started.id)
        if sub_agent is None:
            sub_agent = self._status.sub_agent_executions.add(id=started.id, started_at=event.time)
            self._sub_agents[started.id] = sub_agent
        sub_agent.name, sub_agent.input = started.name, started.input
        sub_agent.status = SUB_AGENT_IN_PROGRESS

    def _sub_agent_completed(self, event: ExecutionEvent, completed: SubAgentCompleted) -> None:
        sub_agent = self._sub_agents.get(completed.id)
        if sub_agent is None:
            return
        sub_agent.status = SUB_AGENT_FAILED if completed.error else SUB_AGENT_COMPLETED
        sub_agent.output, sub_agent.error = completed.output, completed.error
        sub_agent.completed_at = event.time

    def _usage_reported(self, event: ExecutionEvent, reported: UsageReported) -> None:
        total, usage = self._status.run.usage, reported.usage
        total.input_tokens += usage.input_tokens
        total.output_tokens += usage.output_tokens
        total.cached_input_tokens += usage.cached_input_tokens
        total.model_calls += usage.model_calls
        total.cost_usd += usage.cost_usd
        message = self._messages.get(reported.message_id)
        if message is not None:
            message.metadata["usage"] = {
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "cached_input_tokens": usage.cached_input_tokens,
            }

    def _approval_asked(self, event: ExecutionEvent, _asked: object) -> None:
        """Shown to watchers alone: the call waits as PENDING until the answer."""
        for call in self._shown(event.approval_asked.tool_call_id):
            call.status = TOOL_CALL_PENDING

    def _approval_resolved(self, _event: ExecutionEvent, _resolved: object) -> None:
        """Nothing to fold: the call's own events follow."""

    def _warning_raised(self, event: ExecutionEvent, raised: WarningRaised) -> None:
        warnings = self._status.run.warnings
        if raised.text not in warnings and len(warnings) < _MOST_WARNINGS:
            warnings.append(raised.text)

    def _run_described(self, event: ExecutionEvent, described: RunDescribed) -> None:
        run = self._status.run
        run.model = described.model or run.model
        run.engine = described.engine or run.engine
        run.sandbox_id = described.sandbox_id or run.sandbox_id
        if described.skills:
            del run.skills[:]
            run.skills.extend(described.skills)

    def _cancel_requested(self, event: ExecutionEvent, requested: CancelRequested) -> None:
        self._status.run.cancel_requested = True
        self._status.run.cancel_reason = requested.reason

    def _pause_requested(self, event: ExecutionEvent, requested: PauseRequested) -> None:
        self._status.run.pause_requested = True
        self._status.run.pause_reason = requested.reason

    def _paused(self, event: ExecutionEvent, _paused: Paused) -> None:
        # A resume may have come while the run was stopping.
        self._status.run.paused, self._status.run.held = self._status.run.pause_requested, False

    def _resumed(self, event: ExecutionEvent, _resumed: Resumed) -> None:
        self._status.run.pause_requested = self._status.run.paused = False
        self._status.run.pause_reason = ""

    def _steering_requested(self, event: ExecutionEvent, requested: SteeringRequested) -> None:
        run = self._status.run
        if requested.execution_id not in (*run.steering, *run.joined):
            run.steering.append(requested.execution_id)

    def _steering_joined(self, event: ExecutionEvent, joined: SteeringJoined) -> None:
        run = self._status.run
        if joined.execution_id in run.steering:
            run.steering.remove(joined.execution_id)
        if joined.execution_id not in run.joined:
            run.joined.append(joined.execution_id)

    def _joined_execution(self, event: ExecutionEvent, joined: JoinedExecution) -> None:
        self._status.run.joined_execution_id = joined.execution_id

    def _status_merged(self, event: ExecutionEvent, merged: StatusMerged) -> None:
        merge_status(self._status, merged.status)
        self._pieces.clear()
        self._index()
        if is_terminal(self._status.phase) and not self._status.completed_at:
            self._status.completed_at = event.time


def merge_status(status: AgentExecutionStatus, update: AgentExecutionStatus) -> None:
    """Merge what a runner of the Stigmer API sends by `updateStatus`, in place.

    Non-empty lists and maps replace, set scalars replace, nothing is cleared; `audit`,
    `callback_token` and our own fields in the update are ignored. (Rule of the Stigmer server.)
    """
    for name in ("messages", "tool_calls", "sub_agent_executions"):
        if getattr(update, name):
            status.ClearField(name)
            getattr(status, name).extend(getattr(update, name))
    if update.todos:
        status.ClearField("todos")
        for key, item in update.todos.items():
            status.todos[key].CopyFrom(item)
    if update.phase != EXECUTION_PHASE_UNSPECIFIED:
        status.phase = update.phase
    for name in ("error", "started_at", "completed_at"):
        if getattr(update, name):
            setattr(status, name, getattr(update, name))


def _remove_streaming(messages: RepeatedCompositeFieldContainer[AgentMessage]) -> None:
    for position in range(len(messages) - 1, -1, -1):
        if messages[position].streaming:
            del messages[position]
