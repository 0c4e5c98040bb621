"""What lists know of an execution, whoever writes it in whatever order."""

from __future__ import annotations

import pytest
from unit.services.conftest import World

from agent_runner.ports.stores import StoredResource
from agent_runner.services.execution_records import (
    ARTIFACTS,
    LOG,
    OPEN,
    ExecutionRecord,
    ExecutionRecords,
    fields_of,
    key_of,
)
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_COMPLETED,
    EXECUTION_FAILED,
    EXECUTION_IN_PROGRESS,
    EXECUTION_PENDING,
    ExecutionPhase,
)

ENDS = [EXECUTION_COMPLETED, EXECUTION_FAILED, EXECUTION_CANCELLED]


@pytest.fixture
def records(world: World) -> ExecutionRecords:
    return ExecutionRecords(world.store, world.clock)


@pytest.fixture
async def pending(world: World, records: ExecutionRecords) -> ExecutionRecord:
    execution = AgentExecution()
    execution.spec.session_id = "ses-1"
    fields = fields_of(execution, EXECUTION_PENDING)
    await world.store.put(StoredResource(key_of("aex-1"), "", "", b"", fields=fields), expected=0)
    return await records.get("aex-1")


@pytest.mark.parametrize("end", ENDS)
async def test_an_execution_is_in_the_queue_of_its_session_until_it_has_ended(
    records: ExecutionRecords, pending: ExecutionRecord, end: ExecutionPhase.ValueType
) -> None:
    assert pending.resource.fields[OPEN] == "ses-1"
    runs = await records.put(records.in_phase(pending, EXECUTION_IN_PROGRESS))
    assert runs.resource.fields[OPEN] == "ses-1"

    ended = await records.put(records.in_phase(runs, end))

    assert OPEN not in ended.resource.fields
    assert ended.resource.fields[LOG] == "full"
    assert records.in_phase(ended, end) is ended


async def test_an_end_noted_by_another_process_stays(
    records: ExecutionRecords, pending: ExecutionRecord
) -> None:
    await records.put(records.in_phase(pending, EXECUTION_COMPLETED))

    await records.set_fields(pending, {ARTIFACTS: "some"})

    stored = await records.get("aex-1")
    assert stored.listed_in(EXECUTION_COMPLETED)
    assert stored.has_artifacts


async def test_an_end_is_noted_in_what_another_process_wrote(
    records: ExecutionRecords, pending: ExecutionRecord
) -> None:
    await records.set_fields(pending, {ARTIFACTS: "some"})

    await records.put(records.in_phase(pending, EXECUTION_CANCELLED))

    stored = await records.get("aex-1")
    assert stored.listed_in(EXECUTION_CANCELLED)
    assert OPEN not in stored.resource.fields
    assert stored.has_artifacts
