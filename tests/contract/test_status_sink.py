"""What every way to report an execution keeps, and what the one to our own control plane adds."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from itertools import pairwise

import pytest
from contract.status_bench import (
    Backend,
    attempt,
    begun,
    call,
    delta,
    done,
    native_backend,
    phase,
    returned,
    served,
    stigmer_backend,
)
from integration.fakes.servers import NativeServer, StigmerServer

from agent_runner.adapters.status.batches import BatchSettings
from agent_runner.adapters.status.native import NativeSinks
from agent_runner.adapters.status.stigmer import StigmerSinks
from agent_runner.errors import FailedPreconditionError, FencedError, NotFoundError, UnavailableError
from agent_runner.ports.status_sinks import AttemptOf
from agent_runner.v1.events_pb2 import ExecutionEvent, MessageStarted
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_COMPLETED,
    EXECUTION_IN_PROGRESS,
    MESSAGE_AI,
    TOOL_CALL_COMPLETED,
)


@pytest.fixture(params=["native", "stigmer"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    server, execution_id = await (native_backend if request.param == "native" else stigmer_backend)()
    async with served(server, execution_id) as ready:
        yield ready


@pytest.fixture
async def native() -> AsyncIterator[Backend]:
    server, execution_id = await native_backend()
    async with served(server, execution_id) as ready:
        yield ready


async def test_what_is_emitted_arrives_and_equals_the_running_fold(backend: Backend) -> None:
    sink, _ = await backend.sinks.open(attempt(backend))
    sink.emit(phase(EXECUTION_IN_PROGRESS))
    for event in (begun(), *(delta(f"{n} ") for n in range(50)), done()):
        sink.emit(event)
    await sink.begin(call())
    await sink.finish(returned())
    sink.emit(phase(EXECUTION_COMPLETED))
    await sink.flush()

    for status in (await backend.status(), sink.status):
        assert status.phase == EXECUTION_COMPLETED
        assert status.messages[0].content == "".join(f"{n} " for n in range(50))
        assert [(c.id, c.status, c.result) for c in status.tool_calls] == [("c1", TOOL_CALL_COMPLETED, "ok")]
        assert status.started_at and status.completed_at
    await sink.aclose()


async def test_an_execution_that_has_ended_is_not_given(backend: Backend) -> None:
    sink, _ = await backend.sinks.open(attempt(backend))
    sink.emit(phase(EXECUTION_CANCELLED, "enough"))
    await sink.flush()
    await sink.aclose()

    with pytest.raises(FailedPreconditionError):
        await backend.sinks.open(attempt(backend, 2))


async def test_a_later_attempt_knows_the_calls_of_the_earlier(backend: Backend) -> None:
    sink, _ = await backend.sinks.open(attempt(backend))
    for event in (phase(EXECUTION_IN_PROGRESS), begun(), done()):
        sink.emit(event)
    await sink.begin(call("c1"))
    await sink.finish(returned("c1", "listed"))
    await sink.begin(call("c2"))
    await sink.flush()
    await sink.aclose()

    later, grant = await backend.sinks.open(attempt(backend, 2))

    first, second = later.recorded("c1"), later.recorded("c2")
    assert first and first.finished and not first.failed and first.result == "listed"
    assert second and not second.finished
    assert later.recorded("c3") is None
    assert grant.execution.status.messages
    await later.aclose()


async def test_a_server_that_is_away_says_so_and_what_was_emitted_arrives_later(backend: Backend) -> None:
    sink, _ = await backend.sinks.open(attempt(backend))
    await backend.server.stop()
    sink.emit(phase(EXECUTION_IN_PROGRESS))
    sink.emit(begun())
    for n in range(1000):
        sink.emit(delta(f"{n} "))
    sink.emit(done())
    sink.emit(phase(EXECUTION_COMPLETED))
    flushed = asyncio.create_task(sink.flush())
    with pytest.raises(UnavailableError):
        await backend.sinks.open(attempt(backend, 2))
    assert not flushed.done()

    await backend.server.start()
    await flushed

    status = await backend.status()
    assert status.phase == EXECUTION_COMPLETED
    assert status.messages[0].content == "".join(f"{n} " for n in range(1000))
    await sink.aclose()


async def test_an_unknown_execution_is_told_by_name(native: Backend) -> None:
    with pytest.raises(NotFoundError, match="aex-nobody"):
        await native.sinks.open(AttemptOf("aex-nobody", "test/1"))


async def test_the_way_to_report_follows_from_the_server(backend: Backend) -> None:
    sink, _ = await backend.sinks.open(attempt(backend))
    expected = NativeSinks if isinstance(backend.server, NativeServer) else StigmerSinks
    assert type(sink).__module__ == expected.__module__
    await sink.aclose()


# Ours alone


async def test_an_older_attempt_is_fenced_off_and_told_to_stop(native: Backend) -> None:
    old, _ = await native.sinks.open(attempt(native, 1))
    new, grant = await native.sinks.open(attempt(native, 2))
    assert grant.attempt == 2
    old.emit(begun())

    with pytest.raises(FencedError):
        await old.flush()
    with pytest.raises(FencedError):
        await old.wait_stop()
    with pytest.raises(FencedError):
        await old.begin(call())
    with pytest.raises(FencedError):
        await native.sinks.open(attempt(native, 1))

    new.emit(begun("m2"))
    await new.flush()
    assert [m.id for m in (await native.status()).messages] == ["m2"]
    await old.aclose()
    await new.aclose()


async def test_a_tool_call_is_durable_before_begin_returns(native: Backend) -> None:
    sink, _ = await native.sinks.open(attempt(native))
    sink.emit(begun())
    await sink.begin(call())
    assert [c.id for c in (await native.status()).tool_calls] == ["c1"]
    await sink.aclose()


async def test_a_request_for_cancel_comes_with_the_next_answer(native: Backend) -> None:
    sink, _ = await native.sinks.open(attempt(native))
    asked = asyncio.create_task(sink.wait_stop())
    await native.native.services.executions.cancel(native.execution_id, "not wanted")
    sink.emit(begun())
    await asked
    assert sink.cancel_requested
    await sink.aclose()


@pytest.mark.parametrize("ended", [False, True])
async def test_no_tool_begins_once_a_cancel_or_the_end_is_known(native: Backend, ended: bool) -> None:
    sink, _ = await native.sinks.open(attempt(native))
    services = native.native.services
    if ended:
        await services.events.record(native.execution_id, phase(EXECUTION_CANCELLED))
    else:
        await services.executions.cancel(native.execution_id, "not wanted")

    beginning = asyncio.create_task(sink.begin(call()))
    await sink.wait_stop()
    await sink.flush()

    assert not beginning.done()
    assert len((await native.status()).tool_calls) == (0 if ended else 1)
    beginning.cancel()
    await asyncio.wait([beginning])
    await sink.aclose()


async def test_a_lost_answer_stores_nothing_twice(native: Backend) -> None:
    sink, _ = await native.sinks.open(attempt(native))
    server, append = native.native, native.native.services.events.append
    lost = itertools.chain((True, False, True), itertools.repeat(False))

    async def lose_some(request: object) -> object:
        answer = await append(request)  # type: ignore[arg-type]
        if next(lost):
            raise UnavailableError("the answer was lost")
        return answer

    server.add("agent_runner.v1.RunnerService", "AppendEvents", _append_type(), lose_some)
    await server.stop()
    await server.start()
    for event in (begun(), delta("once "), done()):
        sink.emit(event)
    await sink.flush()
    for event in (begun("m2"), delta("twice", "m2"), done("m2")):
        sink.emit(event)
    await sink.flush()

    assert [m.content for m in (await native.status()).messages] == ["once ", "twice"]
    await sink.aclose()


def _append_type() -> type:
    from agent_runner.v1.runner_service_pb2 import AppendEventsRequest

    return AppendEventsRequest


async def test_text_joins_while_a_batch_is_on_its_way_and_boundaries_stay(native: Backend) -> None:
    sinks = NativeSinks(native.channel, BatchSettings(events=10, interval=timedelta(milliseconds=20)))
    sink, _ = await sinks.open(attempt(native))
    held, release = asyncio.Event(), asyncio.Event()

    async def hold(method: str) -> None:
        if method == "AppendEvents":
            held.set()
            await release.wait()

    native.server.before = hold
    sink.emit(begun())
    await held.wait()
    for n in range(10_000):
        sink.emit(delta("x"))
        if n % 1000 == 999:
            sink.emit(ExecutionEvent(warning_raised={"text": str(n)}))  # type: ignore[arg-type]
    release.set()
    await sink.flush()

    sent = [event for request in native.native.appends for event in request.events]
    assert len([e for e in sent if e.HasField("warning_raised")]) == 10
    assert len([e for e in sent if e.HasField("message_delta")]) == 10
    assert (await native.status()).messages[0].content == "x" * 10_000
    await sink.aclose()


async def test_no_append_is_larger_than_a_mebibyte_and_a_long_message_is_whole(native: Backend) -> None:
    sink, _ = await native.sinks.open(attempt(native))
    text = "0123456789abcdef" * (5 << 16)  # 5 MiB
    sink.emit(ExecutionEvent(message_started=MessageStarted(message_id="h", type=MESSAGE_AI, content=text)))
    sink.emit(done("h"))
    for _ in range(40):
        sink.emit(delta("y" * 50_000))
    await sink.flush()

    assert max(request.ByteSize() for request in native.native.appends) <= 1 << 20
    assert (await native.status()).messages[0].content == text
    await sink.aclose()


async def test_ten_events_are_one_batch_and_fewer_wait(native: Backend) -> None:
    sinks = NativeSinks(native.channel, BatchSettings(interval=timedelta(hours=1)))
    sink, _ = await sinks.open(attempt(native))
    sink.emit(begun())
    await sink.flush()
    sent = len(native.native.appends)
    for n in range(10):
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(native.native.appends) == sent
        sink.emit(begun(f"of many {n}"))
    await until(lambda: len(native.native.appends) > sent)
    assert [len(request.events) for request in native.native.appends[sent:]] == [10]
    await sink.aclose()


async def test_a_few_events_leave_by_themselves_after_a_tenth_of_a_second(native: Backend) -> None:
    sink, _ = await native.sinks.open(attempt(native))
    sink.emit(begun())
    await sink.flush()
    sent = len(native.native.appends)
    sink.emit(delta("a"))
    await until(lambda: len(native.native.appends) > sent)
    assert BatchSettings().interval == timedelta(milliseconds=100)
    await sink.aclose()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 (what the server sees has no event)
            await asyncio.sleep(0.005)


async def test_the_stigmer_api_gets_the_whole_status_every_ten_events_and_at_the_end() -> None:
    server, execution_id = await stigmer_backend()
    assert isinstance(server, StigmerServer)
    async with served(server, execution_id) as backend:
        sink, _ = await backend.sinks.open(attempt(backend))
        sink.emit(phase(EXECUTION_IN_PROGRESS))
        await until(lambda: len(server.updates) == 1)
        for n in range(1, 100):
            sink.emit(delta(f"{n} ") if n > 1 else begun())
            if n % 10 == 9:  # with the phase, ten more
                await until(lambda due=(n + 11) // 10: len(server.updates) == due)
        sink.emit(done())
        sink.emit(phase(EXECUTION_COMPLETED))
        await sink.flush()
        await sink.aclose()
    assert 12 <= len(server.updates) <= 13
    _grows([update.messages[0].content for update in server.updates if update.messages])
    assert server.updates[-1].phase == EXECUTION_COMPLETED
    for update in server.updates:
        assert not update.HasField("run")
        assert all(not message.id and not message.streaming for message in update.messages)


def _grows(texts: Sequence[str]) -> None:
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
