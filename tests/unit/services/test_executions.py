"""Making executions, one turn at a time, and ending them."""

from __future__ import annotations

import asyncio

import pytest
from unit.services.conftest import World
from unit.services.fakes.resources import (
    COMPLETED,
    FAILED,
    IN_PROGRESS,
    agent,
    execution,
    platform_agent,
    says,
    session,
)
from unit.services.fakes.runners import Runner

from agent_runner.domain.paging import PageRequest
from agent_runner.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
    WorkflowServiceUnavailableError,
)
from agent_runner.services.container import Services
from agent_runner.v1.options_pb2 import BUSY_POLICY_INTERRUPT, BUSY_POLICY_REJECT
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.command_pb2 import AgentExecutionUpdateStatusInput
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_COMPLETED,
    EXECUTION_IN_PROGRESS,
    EXECUTION_PENDING,
    MESSAGE_AI,
)
from ai.stigmer.commons.apiresource.enum_pb2 import organization


async def settled(services: Services) -> None:
    """Wait for what runs in the background."""
    while services.runs._tasks:
        await asyncio.wait(services.runs._tasks)


async def finish(services: Services, execution_id: str, *events: object) -> None:
    runner = Runner(services, execution_id)
    await runner.start(run=execution_id)
    await runner.send(IN_PROGRESS, COMPLETED)
    await settled(services)


async def nothing_is_left(world: World) -> bool:
    kinds = ("agent_execution", "session", "session_turn")
    return not any([await world.store.list(kind) for kind in kinds]) and not world.log._logs


async def test_an_agent_alone_is_enough(services: Services, world: World, helper: Agent) -> None:
    made = await services.executions.create(execution(agent_id=helper.metadata.id))

    assert made.status.phase == EXECUTION_PENDING
    assert made.status.run.last_seq == 1
    assert world.workflows.started == [made.metadata.id]
    its_session = await services.sessions.get(made.spec.session_id)
    assert its_session.spec.agent_instance_id == helper.status.default_instance_id
    assert its_session.spec.thread_id == f"thread-{its_session.metadata.id}"
    assert its_session.metadata.owner_scope == organization
    assert made.metadata.org == "acme"


async def test_an_agent_of_the_platform_runs_in_a_session_of_the_caller(services: Services) -> None:
    shared = await services.agents.create(platform_agent())
    request = execution(agent_id=shared.metadata.id)
    request.metadata.org = "acme"

    made = await services.executions.create(request)

    its_session = await services.sessions.get(made.spec.session_id)
    assert (its_session.metadata.owner_scope, its_session.metadata.org) == (organization, "acme")


async def test_many_executions_at_once_get_sessions_of_their_own(services: Services, helper: Agent) -> None:
    made = await asyncio.gather(
        *(services.executions.create(execution(agent_id=helper.metadata.id)) for _ in range(50))
    )

    assert len({one.spec.session_id for one in made}) == 50


async def test_the_agent_of_a_session_is_filled_in_and_no_other_is_taken(
    services: Services, helper: Agent
) -> None:
    talk = await services.sessions.create(session(helper.status.default_instance_id))
    other = await services.agents.create(agent("Other"))

    made = await services.executions.create(execution(session_id=talk.metadata.id.replace("-", "_")))

    assert (made.spec.session_id, made.spec.agent_id) == (talk.metadata.id, helper.metadata.id)
    with pytest.raises(InvalidRequestError, match=r"spec\.agent_id"):
        await services.executions.create(execution(session_id=talk.metadata.id, agent_id=other.metadata.id))


async def test_a_lost_default_instance_does_not_keep_an_agent_from_running(
    services: Services, helper: Agent
) -> None:
    await services.agent_instances.delete(helper.status.default_instance_id)

    assert await services.executions.create(execution(agent_id=helper.metadata.id))


@pytest.mark.parametrize(
    ("request_", "error", "text"),
    [
        (execution(), InvalidRequestError, "spec.session_id"),
        (execution(agent_id="agt-none"), NotFoundError, "agt-none"),
        (execution(session_id="ses-none"), NotFoundError, "ses-none"),
        (execution(agent_id="x", message=""), InvalidRequestError, "spec.message"),
        (execution(agent_id="x", message="a" * 5_000_000), InvalidRequestError, "4194304"),
    ],
)
async def test_what_cannot_run_is_refused_and_leaves_nothing(
    services: Services, world: World, request_: AgentExecution, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        await services.executions.create(request_)

    assert await nothing_is_left(world)


async def test_a_message_of_four_mebibytes_is_taken(services: Services, helper: Agent) -> None:
    made = await services.executions.create(execution(agent_id=helper.metadata.id, message="a" * (4 << 20)))

    assert len((await services.executions.get(made.metadata.id)).spec.message) == 4 << 20


async def test_without_temporal_nothing_is_stored(services: Services, world: World, helper: Agent) -> None:
    world.workflows.away = True

    with pytest.raises(WorkflowServiceUnavailableError):
        await services.executions.create(execution(agent_id=helper.metadata.id))

    assert await nothing_is_left(world)


async def test_without_temporal_a_second_turn_is_not_stored_either(
    services: Services, world: World, running: AgentExecution
) -> None:
    await finish(services, running.metadata.id)
    world.workflows.away = True

    with pytest.raises(WorkflowServiceUnavailableError):
        await services.executions.create(execution(session_id=running.spec.session_id))
    world.workflows.away = False
    again = await services.executions.create(execution(session_id=running.spec.session_id))

    assert world.workflows.started == [running.metadata.id, again.metadata.id]


async def test_an_id_that_is_taken_changes_nothing(services: Services, running: AgentExecution) -> None:
    await Runner(services, running.metadata.id).start()
    again = execution(agent_id=running.spec.agent_id)
    again.metadata.id = running.metadata.id

    with pytest.raises(AlreadyExistsError):
        await services.executions.create(again)

    kept = await services.executions.get(running.metadata.id)
    assert (kept.status.run.attempt, kept.spec.session_id) == (1, running.spec.session_id)


# One turn at a time


async def test_turns_of_a_session_run_one_after_the_other(
    services: Services, world: World, running: AgentExecution
) -> None:
    waiting = [
        await services.executions.create(execution(session_id=running.spec.session_id)) for _ in range(3)
    ]
    ids = [running.metadata.id, *(one.metadata.id for one in waiting)]
    assert [one.status.run.queue_position for one in waiting] == [1, 2, 3]

    for number, execution_id in enumerate(ids):
        assert world.workflows.started == ids[: number + 1]
        for place, other in enumerate(ids[number:]):
            shown = await services.executions.get(other)
            assert shown.status.run.queue_position == place
        await finish(services, execution_id)

    assert world.workflows.started == ids


async def test_messages_sent_at_once_into_one_session_all_run_in_order(
    services: Services, world: World, running: AgentExecution
) -> None:
    made = await asyncio.gather(
        *(services.executions.create(execution(session_id=running.spec.session_id)) for _ in range(40))
    )
    done = 0
    while done < len(world.workflows.started):
        await finish(services, world.workflows.started[done])
        done += 1

    assert world.workflows.started == sorted([running.metadata.id, *(one.metadata.id for one in made)])


async def test_two_processes_never_run_two_turns_of_a_session(
    world: World, services: Services, running: AgentExecution
) -> None:
    await finish(services, running.metadata.id)
    one, two = world.process(replicas=True), world.process(replicas=True)

    await asyncio.gather(
        *(p.executions.create(execution(session_id=running.spec.session_id)) for p in (one, two) * 5)
    )

    assert len(world.workflows.started) == 2


async def test_a_failed_turn_lets_the_next_one_run(
    services: Services, world: World, running: AgentExecution
) -> None:
    second = await services.executions.create(execution(session_id=running.spec.session_id))
    runner = Runner(services, running.metadata.id)
    await runner.start()
    await runner.send(FAILED)
    await settled(services)

    assert world.workflows.started[-1] == second.metadata.id
    assert (await services.executions.get(running.metadata.id)).status.error == "It broke."


async def test_a_busy_session_can_refuse(services: Services, running: AgentExecution) -> None:
    request = execution(session_id=running.spec.session_id)
    request.spec.execution_config.options.if_busy = BUSY_POLICY_REJECT

    with pytest.raises(FailedPreconditionError, match=running.metadata.id):
        await services.executions.create(request)
    await finish(services, running.metadata.id)

    assert await services.executions.create(request)


async def test_a_busy_session_can_be_interrupted(
    services: Services, world: World, running: AgentExecution
) -> None:
    request = execution(session_id=running.spec.session_id)
    request.spec.execution_config.options.if_busy = BUSY_POLICY_INTERRUPT

    await services.executions.create(request)

    assert world.workflows.cancelled == [running.metadata.id]
    assert (await services.executions.get(running.metadata.id)).status.run.cancel_requested


# Cancel, delete, update


async def test_cancelling_a_running_execution_asks_its_workflow(
    services: Services, world: World, running: AgentExecution
) -> None:
    runner = Runner(services, running.metadata.id)
    await runner.start()

    asked = await services.executions.cancel(running.metadata.id, "enough")

    assert world.workflows.cancelled == [running.metadata.id]
    assert asked.status.run.cancel_requested
    assert (await runner.send(says("m"))).cancel_requested


async def test_cancelling_one_that_waits_ends_it_at_once(
    services: Services, world: World, running: AgentExecution
) -> None:
    second = await services.executions.create(execution(session_id=running.spec.session_id))
    third = await services.executions.create(execution(session_id=running.spec.session_id))

    ended = await services.executions.cancel(second.metadata.id, "not needed")
    await settled(services)

    assert (ended.status.phase, ended.status.error) == (EXECUTION_CANCELLED, "not needed")
    assert world.workflows.started == [running.metadata.id]
    await finish(services, running.metadata.id)
    assert world.workflows.started == [running.metadata.id, third.metadata.id]


async def test_cancelling_one_whose_workflow_is_gone_ends_it_at_once(
    services: Services, world: World, running: AgentExecution
) -> None:
    world.workflows.open.clear()

    assert (await services.executions.cancel(running.metadata.id)).status.phase == EXECUTION_CANCELLED


async def test_what_has_ended_cannot_be_cancelled(services: Services, running: AgentExecution) -> None:
    await finish(services, running.metadata.id)

    with pytest.raises(FailedPreconditionError, match="completed"):
        await services.executions.cancel(running.metadata.id)


async def test_deleting_a_running_execution_stops_it_and_the_next_one_runs(
    services: Services, world: World, running: AgentExecution
) -> None:
    second = await services.executions.create(execution(session_id=running.spec.session_id))

    gone = await services.executions.delete(running.metadata.id)
    await settled(services)

    assert gone.metadata.id == running.metadata.id
    assert world.workflows.terminated == [running.metadata.id]
    assert world.workflows.started == [running.metadata.id, second.metadata.id]
    with pytest.raises(NotFoundError):
        await services.executions.get(running.metadata.id)
    assert running.metadata.id not in world.log._logs


async def test_an_update_changes_the_spec_and_neither_status_nor_session(
    services: Services, running: AgentExecution
) -> None:
    runner = Runner(services, running.metadata.id)
    await runner.start()
    await runner.send(IN_PROGRESS)
    request = execution(session_id="ses-other", message="Changed")
    request.metadata.id = running.metadata.id

    changed = await services.executions.update(request)

    assert (changed.spec.message, changed.spec.session_id) == ("Changed", running.spec.session_id)
    assert changed.status.phase == EXECUTION_IN_PROGRESS
    await runner.send(COMPLETED)
    final = await services.executions.get(running.metadata.id)
    assert (final.spec.message, final.status.phase) == ("Changed", EXECUTION_COMPLETED)


# Foreign runners


async def test_a_foreign_runner_reports_by_update_status(services: Services, running: AgentExecution) -> None:
    status = AgentExecutionStatus(phase=EXECUTION_IN_PROGRESS)
    status.messages.add(type=MESSAGE_AI, content="Hello")
    request = AgentExecutionUpdateStatusInput(execution_id=running.metadata.id, status=status)
    await services.executions.update_status(request)
    request.status.CopyFrom(AgentExecutionStatus(phase=EXECUTION_COMPLETED, completed_at="now"))

    shown = await services.executions.update_status(request)

    assert (shown.status.phase, shown.status.completed_at) == (EXECUTION_COMPLETED, "now")
    assert [message.content for message in shown.status.messages] == ["Hello"]


async def test_the_end_is_final_for_foreign_runners_too(services: Services, running: AgentExecution) -> None:
    await finish(services, running.metadata.id)
    late = AgentExecutionUpdateStatusInput(execution_id=running.metadata.id)
    late.status.phase = EXECUTION_IN_PROGRESS

    assert (await services.executions.update_status(late)).status.phase == EXECUTION_COMPLETED


# Lists


async def test_executions_are_listed_by_phase_and_session_with_their_status(
    services: Services, helper: Agent, running: AgentExecution
) -> None:
    other = await services.executions.create(execution(agent_id=helper.metadata.id))
    await finish(services, running.metadata.id)

    ended = await services.executions.list_executions(PageRequest(), phase=EXECUTION_COMPLETED)
    mine = await services.executions.list_executions(PageRequest(), session_id=other.spec.session_id)

    assert [(e.metadata.id, e.status.phase) for e in ended.items] == [
        (running.metadata.id, EXECUTION_COMPLETED)
    ]
    assert [e.metadata.id for e in mine.items] == [other.metadata.id]
    assert await services.executions.count_executions() == 2


async def test_large_statuses_are_listed_without_what_was_said(
    services: Services, running: AgentExecution
) -> None:
    runner = Runner(services, running.metadata.id)
    await runner.start()
    await runner.send(IN_PROGRESS, says("m", "x" * 50_000), COMPLETED)

    listed = (await services.executions.list_executions(PageRequest())).items[0]

    assert listed.status.phase == EXECUTION_COMPLETED
    assert not listed.status.messages
    assert (await services.executions.get(running.metadata.id)).status.messages
