"""Appending: order, fencing, repetition, the end."""

from __future__ import annotations

import asyncio

import pytest
from unit.services.conftest import World
from unit.services.fakes.resources import (
    COMPLETED,
    IN_PROGRESS,
    agent,
    called,
    calls,
    execution,
    goes_on,
    has_said,
    says,
)
from unit.services.fakes.runners import Runner

from agent_runner.domain.attempts import AttemptLimits
from agent_runner.domain.status import fold
from agent_runner.errors import (
    ConflictError,
    FailedPreconditionError,
    FencedError,
    InvalidRequestError,
    NotFoundError,
    PositionError,
    UnavailableError,
)
from agent_runner.services.container import Services, build_services
from agent_runner.v1.events_pb2 import ATTEMPT_END_HANDED_OVER, AttemptEnded, ExecutionEvent
from agent_runner.v1.runner_service_pb2 import AppendEventsRequest, StartAttemptRequest
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_COMPLETED,
    EXECUTION_FAILED,
    EXECUTION_IN_PROGRESS,
)


@pytest.fixture
async def runner(services: Services, running: AgentExecution) -> Runner:
    runner = Runner(services, running.metadata.id)
    await runner.start()
    return runner


async def logged(world: World, execution_id: str) -> list[ExecutionEvent]:
    rows = await world.log.read(execution_id, limit=100_000)
    events = [ExecutionEvent.FromString(body) for _seq, body in rows]
    assert [event.seq for event in events] == list(range(1, len(events) + 1)) == [seq for seq, _ in rows]
    return events


async def test_events_are_numbered_timed_and_folded(services: Services, world: World, runner: Runner) -> None:
    answer = await runner.send(IN_PROGRESS, says("m", "Hel"), goes_on("m", "lo"))

    assert (answer.last_seq, answer.next_position) == (5, 3)
    events = await logged(world, runner.execution_id)
    assert [event.attempt for event in events] == [0, 1, 1, 1, 1]
    assert {event.time for event in events} == {"2026-01-01T00:00:00.000000Z"}
    shown = await services.executions.get(runner.execution_id)
    assert shown.status.phase == EXECUTION_IN_PROGRESS
    assert shown.status.messages[0].content == "Hello"
    assert shown.status.started_at == "2026-01-01T00:00:00.000000Z"


async def test_a_repeated_append_stores_nothing_twice(world: World, runner: Runner) -> None:
    await runner.send(IN_PROGRESS, says("m"))

    again = await runner.send(IN_PROGRESS, says("m"), goes_on("m", "a"), position=0)

    assert (again.last_seq, again.next_position) == (5, 3)
    assert len(await logged(world, runner.execution_id)) == 5


async def test_a_gap_is_refused(runner: Runner) -> None:
    with pytest.raises(PositionError) as raised:
        await runner.send(IN_PROGRESS, position=3)
    assert raised.value.expected == 0


async def test_an_older_attempt_can_change_nothing(services: Services, world: World, runner: Runner) -> None:
    late = Runner(services, runner.execution_id)
    assert (await late.start(attempt=2)).attempt == 2

    with pytest.raises(FencedError, match="attempt 2"):
        await runner.send(IN_PROGRESS)
    await late.send(IN_PROGRESS)

    assert (await logged(world, runner.execution_id))[-1].attempt == 2


async def test_an_early_attempt_that_starts_late_takes_nothing_over(
    services: Services, world: World, runner: Runner
) -> None:
    later = Runner(services, runner.execution_id)
    await later.start(attempt=2)

    for process in (services, world.process()):
        with pytest.raises(FencedError):
            await Runner(process, runner.execution_id).start(attempt=1)
    assert (await Runner(services, runner.execution_id).start(run="run-2", attempt=1)).attempt == 3


async def test_a_start_that_is_repeated_gets_a_new_number(services: Services, runner: Runner) -> None:
    assert (await Runner(services, runner.execution_id).start()).attempt == 2


async def test_a_worker_that_is_lost_again_and_again_ends_the_execution(world: World) -> None:
    services = build_services(
        world.store,
        world.log,
        world.announcer,
        world.workflows,
        world.artifacts,
        attempt_limits=AttemptLimits(lost=3),
    )
    helper = await services.agents.create(agent())
    execution_id = (await services.executions.create(execution(agent_id=helper.metadata.id))).metadata.id
    for attempt in (1, 2):
        runner = Runner(services, execution_id)
        await runner.start(attempt=attempt)
        await runner.send(IN_PROGRESS)
    handed_over = AttemptEnded(how=ATTEMPT_END_HANDED_OVER)
    await runner.send(ExecutionEvent(attempt_ended=handed_over))
    for attempt in (3, 4):
        await Runner(services, execution_id).start(attempt=attempt)

    with pytest.raises(FailedPreconditionError, match="failed"):
        await Runner(services, execution_id).start(attempt=5)

    status = (await services.executions.get(execution_id)).status
    assert status.phase == EXECUTION_FAILED
    assert "stopped answering 3 times in a row" in status.error
    lost = [
        e.attempt_started.lost_before for e in await logged(world, execution_id) if e.attempt_started.worker
    ]
    assert lost == [False, True, False, True]
    await services.aclose()


async def test_a_worker_is_known_to_be_lost_at_whatever_control_plane_the_next_one_asks(world: World) -> None:
    one, two = world.process(replicas=True), world.process(replicas=True)
    helper = await one.agents.create(agent())
    execution_id = (await one.executions.create(execution(agent_id=helper.metadata.id))).metadata.id
    await two.executions.get(execution_id)
    for attempt, process in enumerate((one, two, one, two), start=1):
        runner = Runner(process, execution_id)
        await runner.start(attempt=attempt)
        await runner.send(IN_PROGRESS)

    started = [event.attempt_started for event in await logged(world, execution_id)]
    assert [start.lost_before for start in started if start.worker] == [False, True, True, True]
    for process in (one, two):
        await process.aclose()


async def test_a_worker_whose_start_was_not_answered_asks_again_and_is_not_lost(
    services: Services, world: World, runner: Runner
) -> None:
    for _ in range(20):
        await Runner(services, runner.execution_id).start(attempt=1)

    status = (await services.executions.get(runner.execution_id)).status
    assert (status.run.attempt, status.run.lost_in_a_row) == (21, 0)


async def test_the_journal_tells_of_finished_and_unfinished_calls(services: Services, runner: Runner) -> None:
    await runner.send(IN_PROGRESS, says("m"), calls("a"), called("a", "12"), calls("b"))
    second = Runner(services, runner.execution_id)

    granted = await second.start(attempt=2)
    third = await Runner(services, runner.execution_id).start(attempt=3)

    for grant in (granted, third):
        assert [(c.tool_call_id, c.finished, c.result) for c in grant.tool_calls] == [
            ("a", True, "12"),
            ("b", False, ""),
        ]
    assert granted.execution.status.run.attempt == 2


async def test_a_first_attempt_has_no_journal(services: Services, running: AgentExecution) -> None:
    assert not (await Runner(services, running.metadata.id).start()).tool_calls


async def test_the_end_is_final(services: Services, world: World, runner: Runner) -> None:
    await runner.send(IN_PROGRESS, COMPLETED, says("late"))
    count = len(await logged(world, runner.execution_id))

    answer = await runner.send(says("later"))

    assert answer.cancel_requested  # which makes the runner stop
    assert answer.next_position == 4
    assert len(await logged(world, runner.execution_id)) == count == 4
    with pytest.raises(FailedPreconditionError, match="completed"):
        await Runner(services, runner.execution_id).start(attempt=2)


@pytest.mark.parametrize("kind", ["attempt_started", "status_merged", "cancel_requested"])
async def test_runners_log_what_is_theirs_alone(runner: Runner, kind: str) -> None:
    event = ExecutionEvent()
    getattr(event, kind).SetInParent()

    with pytest.raises(InvalidRequestError, match=rf"events\[0\]\.{kind}"):
        await runner.send(event)


async def test_an_unknown_phase_is_refused(runner: Runner) -> None:
    for phase in (0, 99):
        event = ExecutionEvent()
        event.phase_changed.phase = phase  # type: ignore[assignment]
        with pytest.raises(InvalidRequestError, match="phase"):
            await runner.send(event)


async def test_nothing_is_appended_to_what_is_not_there(services: Services) -> None:
    request = AppendEventsRequest(execution_id="aex-none", attempt=1, events=[IN_PROGRESS])
    with pytest.raises(NotFoundError):
        await services.events.append(request)
    with pytest.raises(NotFoundError):
        await services.events.start_attempt(StartAttemptRequest(execution_id="aex-none"))


async def test_appends_at_once_keep_the_log_whole(services: Services, world: World, runner: Runner) -> None:
    async def send(position: int) -> None:
        while True:
            try:
                await runner.send(says(f"m{position}"), position=position)
                return
            except PositionError:
                await asyncio.sleep(0)

    await asyncio.gather(*(send(position) for position in range(50)), *(send(p) for p in range(50)))

    assert len(await logged(world, runner.execution_id)) == 52


async def test_another_process_goes_on_where_this_one_stopped(
    services: Services, world: World, runner: Runner
) -> None:
    await runner.send(IN_PROGRESS, says("m", "one "))
    elsewhere = Runner(world.process(), runner.execution_id)
    elsewhere.granted, elsewhere.position = runner.granted, runner.position
    await elsewhere.send(goes_on("m", "two "))
    runner.position = elsewhere.position
    await runner.send(goes_on("m", "three"), has_said("m"))

    shown = await services.executions.get(runner.execution_id)
    assert shown.status.messages[0].content == "one two three"
    assert [e.seq for e in await logged(world, runner.execution_id)] == list(range(1, 8))


async def test_what_is_read_back_after_a_restart_is_what_was_there(
    services: Services, world: World, runner: Runner
) -> None:
    await runner.send(IN_PROGRESS, says("m"))
    for number in range(1, 120):
        await runner.send(*(goes_on("m", f"{number}.{i} ") for i in range(10)))
        if number % 40 == 0:
            again = await world.process().executions.get(runner.execution_id)
            assert again == await services.executions.get(runner.execution_id)
    await runner.send(has_said("m"), COMPLETED)

    final = await world.process().executions.get(runner.execution_id)
    events = await logged(world, runner.execution_id)
    expected = fold(AgentExecutionStatus(), events)
    expected.audit.CopyFrom(final.status.audit)
    assert final.status == expected
    head = await world.log.head(runner.execution_id)
    assert head.snapshot_seq == head.last_seq == len(events)


async def test_snapshots_cost_no_more_than_a_few_times_the_end(
    world: World, services: Services, runner: Runner
) -> None:
    written: list[int] = []
    append = world.log.append

    async def counting(execution_id: str, events: object, *, expected_seq: int, head: object) -> None:
        if not written or head.snapshot_seq != written_seq[-1]:  # type: ignore[attr-defined]
            written.append(len(head.snapshot))  # type: ignore[attr-defined]
            written_seq.append(head.snapshot_seq)  # type: ignore[attr-defined]
        await append(execution_id, events, expected_seq=expected_seq, head=head)  # type: ignore[arg-type]

    written_seq: list[int] = [-1]
    world.log.append = counting  # type: ignore[method-assign]
    for number in range(400):
        await runner.send(says(f"m{number}", "x" * 500), has_said(f"m{number}"), *[goes_on("none", "y")] * 8)
    await runner.send(COMPLETED)

    assert sum(written) < 4 * written[-1]


async def test_an_append_that_fails_leaves_memory_and_log_alike(
    services: Services, world: World, runner: Runner
) -> None:
    append = world.log.append

    async def failing(*args: object, **kwargs: object) -> None:
        raise UnavailableError("The disk is full.")

    world.log.append = failing  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        await runner.send(IN_PROGRESS)
    world.log.append = append  # type: ignore[method-assign]

    await runner.send(IN_PROGRESS, position=0)

    assert (await services.executions.get(runner.execution_id)).status.run.last_seq == 3
    assert len(await logged(world, runner.execution_id)) == 3


async def test_a_caller_that_leaves_in_the_middle_does_no_harm(
    services: Services, world: World, runner: Runner
) -> None:
    append, gate, entered = world.log.append, asyncio.Event(), asyncio.Event()

    async def slow(*args: object, **kwargs: object) -> None:
        await append(*args, **kwargs)  # type: ignore[arg-type]
        entered.set()
        await gate.wait()

    world.log.append = slow  # type: ignore[method-assign]
    task = asyncio.create_task(runner.send(IN_PROGRESS))
    await entered.wait()
    task.cancel()
    await asyncio.wait([task])
    world.log.append = append  # type: ignore[method-assign]

    answer = await runner.send(IN_PROGRESS, says("m"), position=0)  # what a client sends again

    assert (answer.last_seq, answer.next_position) == (4, 2)
    assert len(await logged(world, runner.execution_id)) == 4


async def test_the_control_planes_own_events_do_not_move_the_runners_position(
    services: Services, runner: Runner
) -> None:
    await runner.send(IN_PROGRESS)
    await services.executions.cancel(runner.execution_id)

    answer = await runner.send(says("m"))

    assert (answer.next_position, answer.last_seq, answer.cancel_requested) == (2, 5, True)


async def test_memory_holds_no_more_than_it_may(world: World, services: Services, runner: Runner) -> None:
    lives = services.events._logbook.lives
    lives._most_entries = 3
    made = []
    for _ in range(10):
        from unit.services.fakes.resources import execution

        request = execution(session_id=runner.granted.execution.spec.session_id)
        made.append(await services.executions.create(request))

    assert len(lives._entries) <= 3
    assert (await services.executions.get(made[0].metadata.id)).spec.message == "Hello"
    await runner.send(IN_PROGRESS, COMPLETED)
    assert (await services.executions.get(runner.execution_id)).status.phase == EXECUTION_COMPLETED


async def test_conflicts_without_end_are_reported(services: Services, world: World, runner: Runner) -> None:
    async def taken(*args: object, **kwargs: object) -> None:
        raise ConflictError("event log", runner.execution_id, 0)

    world.log.append = taken  # type: ignore[method-assign]
    with pytest.raises(ConflictError):
        await runner.send(IN_PROGRESS)
