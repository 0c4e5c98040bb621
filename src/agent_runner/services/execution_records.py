"""Executions as they are stored: the resource without what its events tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from agent_runner.domain.kinds import AGENT_EXECUTION
from agent_runner.domain.phases import TERMINAL_PHASES, is_terminal, phase_name
from agent_runner.errors import ConflictError, NotFoundError
from agent_runner.ports.stores import ResourceKey, ResourceStore, StoredResource
from agent_runner.services._clocks import Clock
from agent_runner.services.resources import touch
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import ExecutionPhase

_TRIES: Final = 20
_SESSION: Final = "session_id"
_ENDED: Final = frozenset(map(phase_name, TERMINAL_PHASES))
CALLER: Final = "caller"
"""Field of executions somebody waits for: `waiting`, then `told`."""
LOG: Final = "log"
"""Field of executions that have ended: `full`, then `compact`."""
STEERS: Final = "steers"
"""Field with the execution whose turn the message of this one is to join."""
OPEN: Final = "open"
"""Field of executions that have not ended: their session, so that its queue is found without its past.

It follows from the phase lists know, and is written with it."""
HOLDER: Final = "holder"
"""Field with the workflow run and the activity attempt that hold the execution, once retried."""

GOING: Final = "going"
"""Field of executions that are being removed, which nobody finds any more. What breaks off goes on by it."""
ARTIFACTS: Final = "artifacts"
"""Field of executions for which something may be in the artifact store."""


@dataclass(frozen=True, slots=True)
class ExecutionRecord:
    """One stored execution.

    Attributes:
        resource: as stored; its fields `phase` and `open` are an index and may lag behind the log after
            a crash.
    """

    resource: StoredResource

    @property
    def id(self) -> str:
        return self.resource.key.id

    @property
    def session_id(self) -> str:
        return self.resource.fields.get("session_id", "")

    @property
    def agent_id(self) -> str:
        return self.resource.fields.get("agent_id", "")

    @property
    def phase(self) -> str:
        """Name of the phase as far as lists know it."""
        return self.resource.fields.get("phase", "")

    @property
    def holder(self) -> str:
        return self.resource.fields.get(HOLDER, "")

    @property
    def steers(self) -> str:
        return self.resource.fields.get(STEERS, "")

    @property
    def is_going(self) -> bool:
        """Whether it is being removed."""
        return GOING in self.resource.fields

    @property
    def caller_waits(self) -> bool:
        """Whether somebody waits for the end and has not been told."""
        return self.resource.fields.get(CALLER) == "waiting"

    @property
    def has_artifacts(self) -> bool:
        """Whether something may be in the artifact store for it."""
        return ARTIFACTS in self.resource.fields

    def listed_in(self, phase: ExecutionPhase.ValueType) -> bool:
        """Whether lists have the execution as one that is in the phase."""
        return self.phase == phase_name(phase) and (OPEN in self.resource.fields) != is_terminal(phase)

    def message(self) -> AgentExecution:
        """The execution; its status holds nothing but the audit."""
        return AgentExecution.FromString(self.resource.body)


def fields_of(execution: AgentExecution, phase: ExecutionPhase.ValueType) -> Mapping[str, str]:
    fields = {
        "session_id": execution.spec.session_id,
        "agent_id": execution.spec.agent_id,
        "phase": phase_name(phase),
    }
    return _with_open(fields | ({CALLER: "waiting"} if execution.spec.callback_token else {}))


def _with_open(fields: Mapping[str, str]) -> Mapping[str, str]:
    """The fields, with `OPEN` as the phase among them has it."""
    others = {name: value for name, value in fields.items() if name != OPEN}
    ended = fields.get("phase") in _ENDED
    return others if ended else others | {OPEN: fields.get("session_id", "")}


def key_of(execution_id: str) -> ResourceKey:
    return ResourceKey(AGENT_EXECUTION.name, execution_id)


class ExecutionRecords:
    """Reads executions, and keeps what lists filter by."""

    def __init__(self, store: ResourceStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def get(self, execution_id: str) -> ExecutionRecord:
        """Read one.

        Raises:
            NotFoundError: there is none, or it is being removed.
        """
        record = await self.get_even_going(execution_id)
        if record.is_going:
            raise NotFoundError(AGENT_EXECUTION.name, execution_id)
        return record

    async def get_even_going(self, execution_id: str) -> ExecutionRecord:
        """Read one, also if it is being removed.

        Raises:
            NotFoundError: there is none.
        """
        return ExecutionRecord(await self._store.get(key_of(execution_id)))

    async def mark_going(self, execution_id: str) -> None:
        """Let nobody find one any more; what is its own can be removed then.

        Raises:
            NotFoundError: there is none.
        """
        for _ in range(_TRIES):
            resource = (await self.get_even_going(execution_id)).resource
            # Without the others, which lists of those that run or wait go by.
            fields = {name: value for name, value in resource.fields.items() if name in (_SESSION, ARTIFACTS)}
            try:
                await self._store.put(
                    replace(resource, fields=fields | {GOING: "yes"}), expected=resource.version
                )
            except ConflictError:
                continue
            return
        raise ConflictError(AGENT_EXECUTION.name, execution_id, 0)

    def in_phase(self, record: ExecutionRecord, phase: ExecutionPhase.ValueType) -> ExecutionRecord:
        """The record with the phase noted, and the time of the change; the same one when it is there."""
        if record.listed_in(phase):
            return record
        ended = {LOG: record.resource.fields.get(LOG, "full")} if is_terminal(phase) else {}
        return self._changed(record, {"phase": phase_name(phase)} | ended)

    async def set_fields(self, record: ExecutionRecord, fields: Mapping[str, str]) -> ExecutionRecord:
        """Note values lists filter by.

        Raises:
            NotFoundError: the execution was deleted.
        """
        return await self.put(self._changed(record, fields))

    async def put(self, changed: ExecutionRecord) -> ExecutionRecord:
        """Store a changed record; where another process was first, the fields are set in what it wrote.

        Raises:
            NotFoundError: the execution was deleted.
        """
        for _ in range(_TRIES):
            resource = changed.resource
            try:
                version = await self._store.put(resource, expected=resource.version)
            except ConflictError:
                changed = self._reapplied(changed, await self.get(changed.id))
                continue
            return ExecutionRecord(replace(resource, version=version))
        raise ConflictError(AGENT_EXECUTION.name, changed.id, changed.resource.version)

    def _reapplied(self, changed: ExecutionRecord, stored: ExecutionRecord) -> ExecutionRecord:
        """The change in what another process wrote; an end that one knew of stays."""
        ended = {"phase": stored.phase} if stored.phase in _ENDED else {}
        return self._changed(stored, {**changed.resource.fields, **ended})

    def _changed(self, record: ExecutionRecord, fields: Mapping[str, str]) -> ExecutionRecord:
        execution = record.message()
        touch(execution.status.audit, "status_audit", self._clock)
        return ExecutionRecord(
            replace(
                record.resource,
                body=execution.SerializeToString(),
                fields=_with_open({**record.resource.fields, **fields}),
            )
        )
