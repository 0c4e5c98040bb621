"""Pausing, resuming, terminating, and messages that join a running turn."""

from __future__ import annotations

from datetime import timedelta

import pytest
from unit.services.conftest import World
from unit.services.fakes.resources import COMPLETED, IN_PROGRESS, execution
from unit.services.fakes.runners import Runner
from unit.services.test_executions import finish, settled

from agent_runner.errors import FailedPreconditionError, NotFoundError, WorkflowServiceUnavailableError
from agent_runner.services.container import Services
from agent_runner.v1.events_pb2 import ExecutionEvent, Paused, SteeringJoined
from agent_runner.v1.options_pb2 import BUSY_POLICY_STEER
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.command_pb2 import AgentExecutionUpdateStatusInput
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_COMPLETED,
    EXECUTION_IN_PROGRESS,
    EXECUTION_PENDING,
    ExecutionPhase,
)

PAUSED = ExecutionEvent(paused=Paused())


async def paused(world: World, services: Services, running: AgentExecution) -> Runner:
    """The runner that has stopped, its workflow closed."""
    runner = Runner(services, running.metadata.id)
    await runner.start()
    assert not (await runner.send(IN_PROGRESS)).pause_requested
    await services.executions.pause(running.metadata.id, "lunch")
    assert (await runner.send()).pause_requested
    assert (await runner.send(PAUSED)).pause_requested
    world.workflows.open.discard(running.metadata.id)
    return runner


async def test_a_paused_execution_has_no_workflow_and_stays_so_over_restarts(
    world: World, services: Services, running: AgentExecution
) -> None:
    await paused(world, services, running)
    restarted = world.process()
    world.clock.advance(timedelta(hours=5))

    done = await restarted.reconciler.reconcile()

    assert (done.started, done.failed) == (0, 0)
    status = (await restarted.executions.get(running.metadata.id)).status
    assert status.phase == EXECUTION_IN_PROGRESS
    assert status.run.paused
    await restarted.aclose()


async def test_a_resumed_execution_gets_a_workflow_again(
    world: World, services: Services, running: AgentExecution
) -> None:
    await paused(world, services, running)

    status = (await services.executions.resume(running.metadata.id)).status

    assert not status.run.paused
    assert not status.run.pause_requested
    assert world.workflows.open == {running.metadata.id}
    again = Runner(services, running.metadata.id)
    assert (await again.start(run="run-2")).attempt == 2
    await again.send(COMPLETED)
    assert (await services.executions.get(running.metadata.id)).status.phase == EXECUTION_COMPLETED


async def test_a_resume_while_the_run_is_stopping_is_told_to_the_runner(
    world: World, services: Services, running: AgentExecution
) -> None:
    runner = Runner(services, running.metadata.id)
    await runner.start()
    await services.executions.pause(running.metadata.id)
    await services.executions.resume(running.metadata.id)

    assert not (await runner.send(PAUSED)).pause_requested
    assert not (await services.executions.get(running.metadata.id)).status.run.paused


async def test_a_resume_without_temporal_is_made_up_for(
    world: World, services: Services, running: AgentExecution
) -> None:
    await paused(world, services, running)
    world.workflows.away = True
    await services.executions.resume(running.metadata.id)
    world.workflows.away = False

    assert (await services.reconciler.reconcile()).restarted == 1


async def test_what_waits_is_paused_at_once_and_keeps_its_place(
    world: World, services: Services, running: AgentExecution
) -> None:
    second, third = [
        await services.executions.create(execution(session_id=running.spec.session_id)) for _ in range(2)
    ]
    assert (await services.executions.pause(second.metadata.id)).status.run.paused
    await finish(services, running.metadata.id)
    assert world.workflows.started == [running.metadata.id]

    await services.executions.resume(second.metadata.id)
    assert world.workflows.started[1:] == [second.metadata.id]
    await finish(services, second.metadata.id)
    assert world.workflows.started[2:] == [third.metadata.id]


async def test_a_paused_execution_can_be_cancelled(
    world: World, services: Services, running: AgentExecution
) -> None:
    await paused(world, services, running)

    cancelled = await services.executions.cancel(running.metadata.id)

    assert cancelled.status.phase == EXECUTION_CANCELLED
    assert not cancelled.status.run.paused


async def test_a_cancel_of_a_paused_execution_is_not_lost_with_temporal(
    world: World, services: Services, running: AgentExecution
) -> None:
    await paused(world, services, running)
    world.workflows.away = True
    await services.executions.cancel(running.metadata.id)
    world.workflows.away = False

    assert (await services.reconciler.reconcile()).cancelled == 1
    assert (await services.executions.get(running.metadata.id)).status.phase == EXECUTION_CANCELLED


async def test_what_a_foreign_runner_has_ended_cannot_be_paused(
    services: Services, running: AgentExecution
) -> None:
    await services.executions.pause(running.metadata.id)
    ended = AgentExecutionStatus(phase=EXECUTION_COMPLETED)
    await services.executions.update_status(
        AgentExecutionUpdateStatusInput(execution_id=running.metadata.id, status=ended)
    )

    with pytest.raises(FailedPreconditionError, match="has ended already"):
        await services.executions.pause(running.metadata.id)


async def test_a_pause_nobody_hears_of_is_a_pause(
    world: World, services: Services, running: AgentExecution
) -> None:
    runner = Runner(services, running.metadata.id)
    await runner.start()
    await services.executions.pause(running.metadata.id)
    world.workflows.open.clear()

    await services.reconciler.reconcile()

    assert (await services.executions.get(running.metadata.id)).status.run.paused


async def test_terminating_ends_at_once_and_fences_the_runner_off(
    world: World, services: Services, running: AgentExecution
) -> None:
    runner = Runner(services, running.metadata.id)
    await runner.start()
    await runner.send(IN_PROGRESS)

    ended = await services.executions.terminate(running.metadata.id, "It does not listen.")

    assert (ended.status.phase, ended.status.error) == (EXECUTION_CANCELLED, "It does not listen.")
    assert world.workflows.terminated == [running.metadata.id]
    assert (await runner.send(COMPLETED)).cancel_requested
    for step in (services.executions.terminate, services.executions.pause, services.executions.resume):
        with pytest.raises(FailedPreconditionError, match="has ended already"):
            await step(running.metadata.id)


@pytest.mark.parametrize("end", [EXECUTION_CANCELLED, EXECUTION_COMPLETED])
async def test_a_runner_that_is_faster_than_terminating_has_the_last_word(
    world: World,
    services: Services,
    running: AgentExecution,
    monkeypatch: pytest.MonkeyPatch,
    end: ExecutionPhase.ValueType,
) -> None:
    runner = Runner(services, running.metadata.id)
    await runner.start()
    terminate = world.workflows.terminate

    async def and_the_runner_reports(execution_id: str, reason: str) -> bool:
        done = await terminate(execution_id, reason)
        await runner.send(ExecutionEvent(phase_changed={"phase": end}))
        return done

    monkeypatch.setattr(world.workflows, "terminate", and_the_runner_reports)
    if end == EXECUTION_CANCELLED:
        ended = await services.executions.terminate(running.metadata.id)
        assert ended.status.phase == EXECUTION_CANCELLED
    else:
        with pytest.raises(FailedPreconditionError, match="completed"):
            await services.executions.terminate(running.metadata.id)


async def test_without_temporal_nothing_is_terminated(
    world: World, services: Services, running: AgentExecution
) -> None:
    world.workflows.away = True
    with pytest.raises(WorkflowServiceUnavailableError):
        await services.executions.terminate(running.metadata.id)
    assert (await services.executions.get(running.metadata.id)).status.phase == EXECUTION_PENDING


# Steering


def steering(running: AgentExecution, message: str = "And be quick.") -> AgentExecution:
    made = execution(session_id=running.spec.session_id, message=message)
    made.spec.execution_config.options.if_busy = BUSY_POLICY_STEER
    return made


def joined(steered: AgentExecution) -> ExecutionEvent:
    return ExecutionEvent(steering_joined=SteeringJoined(execution_id=steered.metadata.id))


async def test_a_message_joins_the_running_turn(
    world: World, services: Services, running: AgentExecution
) -> None:
    runner = Runner(services, running.metadata.id)
    await runner.start()
    steered = await services.executions.create(steering(running))
    [told] = (await runner.send(IN_PROGRESS)).steering
    assert (told.execution_id, told.text) == (steered.metadata.id, "And be quick.")

    assert not (await runner.send(joined(steered))).steering
    over = await services.executions.get(steered.metadata.id)
    assert over.status.phase == EXECUTION_COMPLETED
    assert over.status.run.joined_execution_id == running.metadata.id
    assert running.metadata.id in over.status.messages[-1].content

    # A resumed attempt may have to take it again: what it had not kept yet.
    [again] = (await Runner(services, running.metadata.id).start(attempt=2)).steering
    assert again == told
    assert world.workflows.started == [running.metadata.id]


async def test_a_message_joins_whatever_waits_with_ids_of_its_own_choice(
    services: Services, running: AgentExecution
) -> None:
    runner = Runner(services, running.metadata.id)
    await runner.start()
    for number in range(6):
        before = execution(session_id=running.spec.session_id)
        before.metadata.id = f"{running.metadata.id[:4]}{number:022}"
        await services.executions.create(before)

    steered = await services.executions.create(steering(running))

    assert [told.execution_id for told in (await runner.send(IN_PROGRESS)).steering] == [steered.metadata.id]


async def test_a_message_that_could_not_join_has_the_next_turn(
    world: World, services: Services, running: AgentExecution
) -> None:
    steered = await services.executions.create(steering(running))
    await finish(services, running.metadata.id)

    assert world.workflows.started == [running.metadata.id, steered.metadata.id]


async def test_a_message_that_joined_never_runs_by_itself(
    world: World, services: Services, running: AgentExecution
) -> None:
    runner = Runner(services, running.metadata.id)
    await runner.start()
    steered = await services.executions.create(steering(running))
    put, world.store.put = world.store.put, _away  # type: ignore[method-assign]
    await runner.send(joined(steered))  # stored, but the other one cannot be ended now
    world.store.put = put  # type: ignore[method-assign]
    await runner.send(COMPLETED)
    await settled(services)

    assert (await services.executions.get(steered.metadata.id)).status.phase == EXECUTION_COMPLETED
    assert world.workflows.started == [running.metadata.id]


async def _away(*_args: object, **_kwargs: object) -> int:
    raise WorkflowServiceUnavailableError("the store")


async def test_what_was_stopped_or_is_too_long_does_not_join(
    services: Services, running: AgentExecution
) -> None:
    runner = Runner(services, running.metadata.id)
    await runner.start()
    stopped = await services.executions.create(steering(running))
    await services.executions.create(steering(running, "x" * (65 << 10)))
    await services.executions.cancel(stopped.metadata.id)

    assert not (await runner.send(IN_PROGRESS)).steering


async def test_a_message_whose_turn_to_join_was_deleted_has_the_next_turn(
    world: World, services: Services, running: AgentExecution, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = services.events.record

    async def too_late(execution_id: str, event: ExecutionEvent) -> bool:
        if event.HasField("steering_requested"):
            await services.executions.delete(execution_id)
        return await record(execution_id, event)

    monkeypatch.setattr(services.events, "record", too_late)
    steered = await services.executions.create(steering(running))

    assert world.workflows.started == [running.metadata.id, steered.metadata.id]


async def test_an_idle_session_just_runs_it(
    world: World, services: Services, running: AgentExecution
) -> None:
    await finish(services, running.metadata.id)
    steered = await services.executions.create(steering(running))
    assert world.workflows.started[-1] == steered.metadata.id


# Removing


async def test_a_deleted_session_leaves_nothing(
    world: World, services: Services, running: AgentExecution
) -> None:
    waiting = await services.executions.create(execution(session_id=running.spec.session_id))
    runner = Runner(services, running.metadata.id)
    await runner.start()
    before = services.executions.cancel

    async def cancel(execution_id: str, reason: str = "") -> AgentExecution:
        done = await before(execution_id, reason)
        if execution_id == running.metadata.id:
            await runner.send(ExecutionEvent(phase_changed={"phase": EXECUTION_CANCELLED}))
        return done

    services.executions.cancel = cancel  # type: ignore[method-assign]
    await services.sessions.delete(running.spec.session_id)
    await settled(services)

    for kind in ("session", "session_turn", "agent_execution", "execution_context"):
        assert not await world.store.list(kind)
    assert not world.log._logs
    [remains] = world.workflows.cleaned
    assert remains.thread_id == f"thread-{running.spec.session_id}"
    assert remains.wait_seconds == 0
    assert world.workflows.started == [running.metadata.id]
    assert waiting.metadata.id not in world.workflows.started


async def test_a_runner_that_does_not_listen_is_terminated_and_given_time(
    world: World, services: Services, running: AgentExecution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_runner.services.removal._ORDERLY", timedelta(milliseconds=10))
    await services.sessions.delete(running.spec.session_id)

    assert world.workflows.terminated == [running.metadata.id]
    assert world.workflows.cleaned[0].wait_seconds > 0
    with pytest.raises(NotFoundError):
        await services.executions.get(running.metadata.id)


async def test_without_temporal_a_session_is_not_deleted(
    world: World, services: Services, running: AgentExecution
) -> None:
    await finish(services, running.metadata.id)
    world.workflows.away = True
    with pytest.raises(WorkflowServiceUnavailableError):
        await services.sessions.delete(running.spec.session_id)
    assert await services.executions.get(running.metadata.id)
