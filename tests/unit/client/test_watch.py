from __future__ import annotations

import asyncio
from datetime import timedelta

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.client.small_server import Cut, SmallServer, log_of

from agent_runner.client import AgentRunner
from agent_runner.client.errors import RemoteError, ServerUnreachableError
from agent_runner.errors import NotFoundError, UnauthenticatedError
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent

CODES = [
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
    None,
]


async def start(client: AgentRunner) -> str:
    agent = await client.resources.create(Agent(metadata={"name": "a"}))
    return (await client.start("hello", agent=agent.metadata.slug)).metadata.id


async def test_a_finished_execution_is_watched_from_its_first_event(
    server: SmallServer, client: AgentRunner
) -> None:
    server.events = log_of(5)

    assert [e.seq async for e in client.watch(await start(client))] == [1, 2, 3, 4, 5]


async def test_watching_goes_on_after_a_seq(server: SmallServer, client: AgentRunner) -> None:
    server.events = log_of(5)

    assert [e.seq async for e in client.watch(await start(client), after_seq=3)] == [4, 5]


async def test_watching_after_the_last_event_ends(server: SmallServer, client: AgentRunner) -> None:
    server.events = log_of(5)

    assert [e.seq async for e in client.watch(await start(client), after_seq=5)] == []


@settings(max_examples=25)
@given(
    count=st.integers(1, 12),
    cuts=st.lists(st.tuples(st.integers(0, 6), st.sampled_from(CODES)), max_size=4),
    overlap=st.integers(0, 3),
)
def test_whatever_cuts_the_stream_each_event_comes_once_and_in_order(
    count: int, cuts: list[tuple[int, grpc.StatusCode | None]], overlap: int
) -> None:
    async def watch() -> list[int]:
        server = SmallServer(events=log_of(count), cuts=[Cut(*c) for c in cuts], overlap=overlap)
        await server.start()
        try:
            async with AgentRunner(server.address) as client:
                return [e.seq async for e in client.watch(await start(client))]
        finally:
            await server.stop()

    assert asyncio.run(watch()) == list(range(1, count + 1))


async def test_a_server_that_restarts_loses_no_event_and_both_changes_are_told(server: SmallServer) -> None:
    server.events = log_of(6)[:3]
    told: list[bool] = []
    async with AgentRunner(server.address) as client:
        execution_id = await start(client)
        port = int(server.address.rpartition(":")[2])
        seen: list[int] = []

        async def watch() -> None:
            events = client.executions.watch(
                execution_id, on_reconnect=lambda reason: told.append(reason is None)
            )
            async for event in events:
                seen.append(event.seq)
                if event.seq == 3:
                    third.set()

        third = asyncio.Event()
        # The log ends without a terminal phase, so the watch stays open until the server goes.
        server.stored["AgentExecution"][execution_id].status.phase = 2  # type: ignore[attr-defined]
        task = asyncio.create_task(watch())
        await asyncio.wait_for(third.wait(), 120)
        await server.stop()
        server.events = log_of(6)
        await server.start(port)
        await asyncio.wait_for(task, 120)

    assert seen == [1, 2, 3, 4, 5, 6]
    assert told[-1] is True


async def test_a_watch_goes_on_when_who_ended_it_is_not_ready_to_say_why(
    server: SmallServer, client: AgentRunner
) -> None:
    execution_id = await start(client)
    server.events, server.cuts = log_of(5), [Cut(2, None)]
    refusals = iter(range(8))  # more than gRPC tries again by itself
    server.refuse = lambda method: (
        (grpc.StatusCode.UNAVAILABLE, "The database is away.")
        if method.endswith("/get") and next(refusals, None) is not None
        else None
    )

    assert [e.seq async for e in client.watch(execution_id)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    ],
)
async def test_a_server_that_goes_while_it_is_asked_for_the_end_is_watched_on(
    server: SmallServer, client: AgentRunner, code: grpc.StatusCode
) -> None:
    server.events = log_of(6)[:3]
    execution_id = await start(client)
    server.stored["AgentExecution"][execution_id].status.phase = 2  # type: ignore[attr-defined]
    refusals = [(code, "Cancelling all calls")] * 2  # one is tried again by itself

    def refuse(method: str) -> tuple[grpc.StatusCode, str] | None:
        if not method.endswith("/get"):
            return None
        if refusals:
            return refusals.pop()
        server.events = log_of(6)
        return None

    server.refuse = refuse

    assert [e.seq async for e in client.watch(execution_id)] == [1, 2, 3, 4, 5, 6]
    assert refusals == []


async def test_an_unknown_execution_is_not_found(client: AgentRunner) -> None:
    with pytest.raises(NotFoundError):
        _ = [e async for e in client.watch("aex-" + "0" * 26)]


async def test_a_wrong_key_ends_the_watch_at_once(server: SmallServer) -> None:
    server.key = "right"
    async with AgentRunner(server.address, "wrong") as client:
        with pytest.raises(UnauthenticatedError, match="wants a key"):
            _ = [e async for e in client.watch("aex-" + "0" * 26)]


async def test_a_server_that_stays_away_is_given_up(server: SmallServer, client: AgentRunner) -> None:
    await server.stop()

    with pytest.raises(ServerUnreachableError, match=server.address):
        _ = [e async for e in client.executions.watch("aex-1", patience=timedelta(seconds=0.2))]
    await server.start()


async def test_a_failure_that_comes_again_each_time_is_told(server: SmallServer, client: AgentRunner) -> None:
    server.refuse = lambda method: (
        (grpc.StatusCode.INTERNAL, "broken for good") if method == "WatchExecution" else None
    )

    with pytest.raises(RemoteError, match="broken for good"):
        _ = [e async for e in client.watch(await start(client))]
