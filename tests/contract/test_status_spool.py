"""What an attempt has to say outlives it: on disk in an outage, delivered when the control plane is back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from contract.spool_bench import World, delivering, left, opened, outage, say
from contract.status_bench import attempt, begun, call, delta, done, native_backend, phase, returned, served
from structlog.testing import capture_logs

from agent_runner.adapters.status.native import NativeSinks
from agent_runner.adapters.status.spool_files import SpoolFile
from agent_runner.adapters.status.spools import SpoolName
from agent_runner.domain.status import fold
from agent_runner.errors import FencedError, UnavailableError
from agent_runner.v1.events_pb2 import ExecutionEvent, ToolCallOutput
from agent_runner.v1.runner_service_pb2 import AppendEventsRequest
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_COMPLETED,
    EXECUTION_IN_PROGRESS,
    TOOL_CALL_COMPLETED,
)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    server, execution_id = await native_backend()
    async with served(server, execution_id) as backend:
        made = World(backend, tmp_path / "outbox")
        yield made
        for spool in made.spools:
            await spool.aclose()


async def test_while_the_control_plane_answers_nothing_touches_the_disk(world: World) -> None:
    sink, _ = await world.sinks().open(attempt(world.backend))
    say(sink, "hello ", "there")
    await sink.begin(call())
    await sink.finish(returned())
    sink.emit(phase(EXECUTION_COMPLETED))
    await sink.flush()
    sink.emit(delta("after the end"))
    await sink.aclose()
    assert not world.directory.exists()


async def test_an_outage_is_kept_on_disk_and_delivered_in_order(world: World) -> None:
    sink, _ = await world.sinks().open(attempt(world.backend))
    sink.emit(begun())
    async with outage(world):
        file, words = None, []
        for n in range(300):
            words.append(f"{n} ")
            sink.emit(delta(words[-1]))
            if n % 100 == 0:
                sink.emit(begun(f"m{n}"))
                sink.emit(delta("whole", f"m{n}"))
                sink.emit(done(f"m{n}"))
                file = await world.kept(file.stat().st_size if file else 0)
        assert file and (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        sink.emit(done())
        flushed = asyncio.create_task(sink.flush())
        await world.kept(file.stat().st_size)
        assert not flushed.done()
    await flushed
    await world.gone()

    sink.emit(begun("m9"))
    sink.emit(delta("and on", "m9"))
    sink.emit(phase(EXECUTION_COMPLETED))
    await sink.flush()
    status = await world.backend.status()
    assert [m.content for m in status.messages] == ["".join(words), "whole", "whole", "whole", "and on"]
    assert fold(AgentExecutionStatus(), await world.log()).messages == status.messages
    await sink.aclose()
    assert not world.files()


async def test_the_next_attempt_begins_after_what_the_last_one_left(world: World) -> None:
    await left(world, "said ", "in the dark", end=False)

    sink, grant = await opened(world, 2)

    assert [m.content for m in grant.execution.status.messages] == ["said in the dark"]
    assert not world.files()
    sink.emit(phase(EXECUTION_COMPLETED))
    await sink.flush()
    await sink.aclose()
    kinds = [(event.attempt, event.WhichOneof("event")) for event in await world.log()]
    assert kinds[-2:] == [(2, "attempt_started"), (2, "phase_changed")]
    assert (1, "message_completed") in kinds[:-2]


async def test_a_control_plane_whose_database_is_away_is_an_outage_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only calls that fail count, not the time without an answer.
    monkeypatch.setattr("agent_runner.adapters.status.native._SILENCE", 3600)
    sink, _ = await world.sinks().open(attempt(world.backend))

    async def broken(method: str) -> None:
        raise RuntimeError("the database is away")

    world.backend.server.before = broken
    say(sink, "kept")
    await world.kept()
    world.backend.server.before = None
    await sink.flush()
    await world.gone()
    assert [m.content for m in (await world.backend.status()).messages] == ["kept"]
    await sink.aclose()


@pytest.mark.parametrize("method", ["AppendEvents", "StartAttempt"])
async def test_a_control_plane_that_fails_for_a_moment_costs_the_next_attempt_nothing(
    world: World, method: str
) -> None:
    await left(world, "said ", "in the dark", end=False)
    faults = iter([RuntimeError("a bug"), UnavailableError("restarts"), RuntimeError("a bug")])

    async def fail(called: str) -> None:
        if called == method and (fault := next(faults, None)) is not None:
            raise fault

    world.backend.server.before = fail
    sink, grant = await opened(world, 2)

    assert next(faults, None) is None
    assert [m.content for m in grant.execution.status.messages] == ["said in the dark"]
    await sink.aclose()


async def test_a_file_the_control_plane_fails_at_each_time_does_not_hold_up_the_execution(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_runner.adapters.status.leftovers._FAULT_PATIENCE", 0)
    file = await left(world, "poison", end=False)

    async def fail(method: str) -> None:
        if method == "AppendEvents":
            raise RuntimeError("a bug")

    world.backend.server.before = fail
    sink, grant = await opened(world, 2)
    assert grant.attempt == 2
    assert file.exists()
    await sink.aclose()


async def test_an_attempt_does_not_begin_while_what_was_left_cannot_be_delivered(world: World) -> None:
    sink, _ = await world.sinks().open(attempt(world.backend))
    async with outage(world):
        say(sink, "kept")
        await sink.aclose()
        with pytest.raises(UnavailableError):
            await world.sinks().open(attempt(world.backend, 2))
        assert world.files()


async def test_an_end_nobody_asks_for_again_arrives_by_itself(world: World) -> None:
    sinks = world.sinks()
    sink, _ = await sinks.open(attempt(world.backend))
    async with delivering(sinks):
        async with outage(world):
            say(sink, "the end")
            sink.emit(phase(EXECUTION_COMPLETED))
            await sink.aclose()
            await world.kept()
        await world.gone()
    status = await world.backend.status()
    assert (status.phase, status.messages[0].content) == (EXECUTION_COMPLETED, "the end")


async def test_what_another_attempt_has_made_void_is_dropped_with_one_line(world: World) -> None:
    await left(world, "too late")
    elsewhere, _ = await opened(world, 2, NativeSinks(world.backend.channel))
    with capture_logs() as logs:
        async with delivering(world.sinks()):
            await world.gone()
    assert [entry["event"] for entry in logs] == ["events of an ended attempt dropped"]
    assert not (await world.backend.status()).messages
    await elsewhere.aclose()


async def test_what_comes_after_the_end_changes_nothing(world: World) -> None:
    await left(world, "too late")
    await world.backend.native.services.events.record(world.backend.execution_id, phase(EXECUTION_CANCELLED))
    async with delivering(world.sinks()):
        await world.gone()
    status = await world.backend.status()
    assert (status.phase, len(status.messages)) == (EXECUTION_CANCELLED, 0)


async def test_what_a_living_attempt_may_not_say_any_more_is_removed(world: World) -> None:
    sink, _ = await world.sinks().open(attempt(world.backend))

    async def away(method: str) -> None:
        if method == "AppendEvents":
            raise UnavailableError("not now")

    world.backend.server.before = away
    say(sink, "zombie")
    await world.kept()
    new, _ = await opened(world, 2, NativeSinks(world.backend.channel))
    world.backend.server.before = None

    with pytest.raises(FencedError):
        await sink.wait_stop()
    await sink.aclose()
    assert not world.files()
    assert not (await world.backend.status()).messages
    await new.aclose()


async def test_a_broken_file_is_set_aside_and_named(world: World) -> None:
    file = await left(world, "first", end=False)
    body = bytearray(file.read_bytes())
    body[10] ^= 1
    file.write_bytes(body)
    with capture_logs() as logs:
        sink, _ = await opened(world, 2)
    assert [path.name for path in world.files("broken")] == [file.with_suffix(".broken").name]
    assert not world.files()
    assert str(world.files("broken")[0]) in str(logs)
    await sink.aclose()


async def test_a_file_with_a_torn_end_is_delivered_up_to_there(world: World) -> None:
    file = await left(world, "whole", end=False)
    with file.open("ab") as torn:
        torn.write(b"half a rec")
    with capture_logs() as logs:
        async with delivering(world.sinks()):
            await world.gone()
    assert [m.content for m in (await world.backend.status()).messages] == ["whole"]
    assert [entry["bytes"] for entry in logs if "torn" in entry["event"]] == [10]


async def test_a_file_that_has_no_place_in_the_log_is_set_aside(world: World) -> None:
    sink, _ = await world.sinks().open(attempt(world.backend))
    world.directory.mkdir()
    name = SpoolName(world.backend.execution_id, 1)
    file = SpoolFile.create(world.spools[0].path(name))
    request = AppendEventsRequest(execution_id=name.execution_id, attempt=1, position=5, events=[begun()])
    file.append(request)
    file.close()
    async with delivering(world.sinks()):
        await world.gone()
    assert [path.name for path in world.files("broken")] == [file.aside.name]
    await sink.aclose()


async def test_a_file_that_somebody_holds_is_left_to_them(world: World) -> None:
    sink, _ = await world.sinks().open(attempt(world.backend))
    other = world.sinks()
    async with delivering(other):
        async with outage(world):
            say(sink, "mine")
            file = await world.kept()
            with pytest.raises(BlockingIOError):
                await world.spools[-1].take(world.spools[-1].names()[0])
            assert file.exists()
        await sink.flush()
    assert [m.content for m in (await world.backend.status()).messages] == ["mine"]
    await sink.aclose()


async def test_two_runners_deliver_a_file_once(world: World) -> None:
    await left(world, *(f"{n} " for n in range(100)))
    world.backend.native.appends.clear()
    async with delivering(world.sinks()), delivering(world.sinks()):
        await world.gone()
    # Whether the second one came after the first was done or found it held: it had nothing to send.
    assert len(world.backend.native.appends) == 1
    assert (await world.backend.status()).messages[0].content == "".join(f"{n} " for n in range(100))


async def test_a_file_is_delivered_again_after_a_broken_delivery_without_repeating(world: World) -> None:
    file = await left(world, "once")
    body = file.read_bytes()
    async with delivering(world.sinks()):
        await world.gone()
    file.write_bytes(body)
    async with delivering(world.sinks()):
        await world.gone()
    log = await world.log()
    assert len([event for event in log if event.HasField("message_started")]) == 1


async def test_a_call_that_waited_to_be_stored_has_not_begun_for_the_next_attempt(world: World) -> None:
    sink, _ = await world.sinks().open(attempt(world.backend))
    async with outage(world):
        say(sink, "I will act")
        waiting = asyncio.create_task(sink.begin(call("c1")))
        sink.emit(ExecutionEvent(tool_call_output=ToolCallOutput(tool_call_id="other", text="x")))
        await world.kept()
        waiting.cancel()
        await sink.aclose()

    later, grant = await opened(world, 2)

    assert [m.content for m in grant.execution.status.messages] == ["I will act"]
    assert later.recorded("c1") is None
    await later.aclose()


async def test_a_call_that_waited_is_stored_by_the_attempt_that_lives(world: World) -> None:
    sink, _ = await world.sinks().open(attempt(world.backend))
    async with outage(world):
        sink.emit(begun())
        waiting = asyncio.create_task(sink.begin(call("c1")))
        await world.kept()
        assert not waiting.done()
    await waiting
    assert [c.id for c in (await world.backend.status()).tool_calls] == ["c1"]
    await sink.finish(returned("c1"))
    await sink.aclose()
    assert [c.status for c in (await world.backend.status()).tool_calls] == [TOOL_CALL_COMPLETED]


async def test_without_room_text_waits_in_memory_and_all_arrives(world: World) -> None:
    sink, _ = await world.sinks(most_bytes=4000).open(attempt(world.backend))
    async with outage(world):
        say(sink, "short")
        file = await world.kept()
        sink.emit(begun("m2"))
        for n in range(1000):
            sink.emit(delta("0123456789", "m2"))
            if n % 100 == 0:
                await asyncio.sleep(0.01)
        sink.emit(done("m2"))
        flushed = asyncio.create_task(sink.flush())
        await asyncio.sleep(0.1)
        assert file.stat().st_size <= 4000
    await flushed
    assert [m.content for m in (await world.backend.status()).messages] == ["short", "0123456789" * 1000]
    await sink.aclose()
    assert not world.files()


async def test_without_room_text_gives_and_the_end_is_kept(world: World) -> None:
    sinks = world.sinks(most_bytes=4000)
    sink, _ = await sinks.open(attempt(world.backend))
    async with outage(world):
        sink.emit(phase(EXECUTION_IN_PROGRESS))
        say(sink, "short")
        await world.kept()
        sink.emit(begun("m2"))
        sink.emit(delta("x" * 100_000, "m2"))
        sink.emit(done("m2"))
        sink.emit(returned("c9"))
        sink.emit(phase(EXECUTION_COMPLETED))
        await sink.aclose()
        assert (await world.kept()).stat().st_size < 8000
    async with delivering(world.sinks()):
        await world.gone()

    status = await world.backend.status()
    assert status.phase == EXECUTION_COMPLETED
    assert [m.content for m in status.messages] == ["short", ""]
    (warning,) = status.run.warnings
    assert warning.startswith("100000 characters of text are missing")


async def test_text_that_has_room_is_kept_when_not_all_has(world: World) -> None:
    sink, _ = await world.sinks(most_bytes=1_000_000).open(attempt(world.backend))
    async with outage(world):
        sink.emit(begun())
        sink.emit(delta("x" * 2_000_000))
        sink.emit(done())
        await sink.aclose()
        assert (await world.kept()).stat().st_size < 1_000_000
    async with delivering(world.sinks()):
        await world.gone()

    status = await world.backend.status()
    kept = len(status.messages[0].content)
    assert kept > 500_000
    assert status.run.warnings[0].startswith(f"{2_000_000 - kept} characters of text are missing")


async def test_a_control_plane_that_is_silent_is_away_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_runner.adapters.status.native._SILENCE", 0.1)
    sink, _ = await world.sinks().open(attempt(world.backend))
    answers = asyncio.Event()

    async def hold(method: str) -> None:
        await answers.wait()

    world.backend.server.before = hold
    say(sink, "into the void")
    await world.kept()
    answers.set()
    await sink.flush()
    await sink.aclose()
    assert not world.files()
    assert [m.content for m in (await world.backend.status()).messages] == ["into the void"]


@contextmanager
def unwritable(directory: Path) -> Iterator[None]:
    directory.parent.joinpath("full").write_bytes(b"")
    directory.symlink_to(directory.parent / "full")  # no directory: every write fails, also for root
    yield


async def test_a_disk_that_takes_nothing_leaves_memory_as_it_was(world: World) -> None:
    sink, _ = await world.sinks().open(attempt(world.backend))
    with unwritable(world.directory), capture_logs() as logs:
        async with outage(world):
            say(sink, "in memory")
            async with asyncio.timeout(120):
                while "events wait in memory alone" not in str(logs):  # noqa: ASYNC110 (logs have no event)
                    await asyncio.sleep(0.01)
        await sink.flush()
        assert [m.content for m in (await world.backend.status()).messages] == ["in memory"]
        async with outage(world):
            say(sink, "lost")
            await sink.aclose()
    (line,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert line["events"] == 3
