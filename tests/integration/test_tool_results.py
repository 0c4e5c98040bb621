"""Results too long for an event, over real gRPC: kept by whoever runs the execution, and by nobody else."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc.aio
import obstore
import pytest
from unit.services.conftest import World
from unit.services.fakes.resources import COMPLETED, agent, called, calls, execution

from agent_runner.adapters.controlplane.tool_results import GrpcToolResults
from agent_runner.adapters.status.native import NativeSinks
from agent_runner.client.channels import Channel
from agent_runner.controlplane.server import ControlPlane
from agent_runner.domain.tool_results import MOST_KEPT
from agent_runner.errors import (
    AgentRunnerError,
    FailedPreconditionError,
    FencedError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from agent_runner.ports.status_sinks import AttemptOf, Grant, StatusSink
from agent_runner.ports.tool_results import ResultToKeep
from agent_runner.services.container import Services
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.runner_service_pb2 import (
    UploadToolResultHeader,
    UploadToolResultRequest,
    UploadToolResultResponse,
)
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, ToolCall
from ai.stigmer.agentic.agentexecution.v1.command_pb2 import AgentExecutionUpdateStatusInput
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import TOOL_CALL_COMPLETED

TEXT = bytes(range(256)) * (12 << 10)
"""3 MiB."""


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def services(world: World) -> AsyncIterator[Services]:
    made = world.process()
    yield made
    await made.aclose()


@pytest.fixture
async def channel(services: Services) -> AsyncIterator[Channel]:
    server = ControlPlane(services, address="127.0.0.1:0", api_key=None, version="1.2.3")
    channel = Channel(f"127.0.0.1:{await server.start()}")
    yield channel
    await channel.aclose()
    await server.stop(0)


@pytest.fixture
def results(channel: Channel) -> GrpcToolResults:
    return GrpcToolResults(channel)


async def running(services: Services) -> AgentExecution:
    return await services.executions.create(
        execution(agent_id=(await services.agents.apply(agent())).metadata.id)
    )


async def take(channel: Channel, run: AgentExecution, attempt: int = 1) -> tuple[StatusSink, Grant]:
    """Become the worker that holds an execution."""
    taken = AttemptOf(run.metadata.id, "test", workflow_run_id="run-1", activity_attempt=attempt)
    return await NativeSinks(channel).open(taken)


def result(run: AgentExecution, grant: Grant, text: bytes = TEXT, **other: Any) -> ResultToKeep:
    fields: dict[str, Any] = {
        "execution_id": run.metadata.id,
        "attempt": grant.attempt,
        "token": grant.token,
        "tool_call_id": "call-1",
        "size": len(text),
        "sha256": hashlib.sha256(text).digest(),
    }
    return ResultToKeep(**{**fields, **other})


def pieces(text: bytes = TEXT) -> Iterator[bytes]:
    for start in range(0, len(text), 200_000):
        yield text[start : start + 200_000]


def ended(key: str, call_id: str = "call-1") -> ExecutionEvent:
    event = called(call_id, "the ends of it")
    event.tool_call_completed.artifact_key = key
    return event


async def read(results: GrpcToolResults, run: AgentExecution, call_id: str = "call-1") -> bytes:
    return b"".join([chunk async for chunk in results.get(run.metadata.id, call_id)])


async def everything(world: World) -> list[str]:
    return [entry["path"] async for page in obstore.list(world.artifacts._store) for entry in page]


async def test_a_kept_result_is_read_back_byte_for_byte(
    services: Services, channel: Channel, results: GrpcToolResults
) -> None:
    run = await running(services)
    sink, grant = await take(channel, run)

    key = await results.put(result(run, grant), pieces())
    for event in (calls("call-1"), ended(key), calls("call-2"), called("call-2", "short ü")):
        sink.emit(event)
    await sink.flush()

    assert key.startswith(f"executions/{run.metadata.id}/")
    assert await results.put(result(run, grant), pieces()) == key
    assert await read(results, run) == TEXT
    assert await read(results, run, "call-2") == "short ü".encode()
    await sink.aclose()


async def test_what_is_kept_goes_with_the_session_also_when_no_event_tells_of_it(
    world: World, services: Services, channel: Channel, results: GrpcToolResults
) -> None:
    run, other = await running(services), await running(services)
    sink, grant = await take(channel, run)
    others, others_grant = await take(channel, other)
    key = await results.put(result(run, grant), pieces())
    lost = await results.put(result(run, grant, b"lost"), pieces(b"lost"))
    kept = await results.put(result(other, others_grant), pieces())
    for event in (calls("call-1"), ended(key), COMPLETED):
        sink.emit(event)
    await sink.flush()
    assert sorted(await everything(world)) == sorted([key, lost, kept])

    await services.sessions.delete(run.spec.session_id)

    assert await everything(world) == [kept]
    for gone in (sink, others):
        await gone.aclose()


async def test_only_the_worker_that_holds_an_execution_may_keep_its_results(
    world: World, services: Services, channel: Channel, results: GrpcToolResults
) -> None:
    run, other = await running(services), await running(services)
    (sink, grant), (others, others_grant) = await take(channel, run), await take(channel, other)

    for token in ("", "a guess", others_grant.token, grant.token.swapcase()):
        with pytest.raises(PermissionDeniedError, match=r"`token` is .*StartAttempt"):
            await results.put(result(run, grant, token=token), pieces())
    with pytest.raises(PermissionDeniedError):
        await results.put(result(other, grant), pieces())
    with pytest.raises(FencedError):
        await results.put(result(run, grant, attempt=7), pieces())
    assert await everything(world) == []
    for held in (sink, others):
        await held.aclose()


async def test_an_attempt_that_was_replaced_keeps_nothing_any_more(
    world: World, services: Services, channel: Channel, results: GrpcToolResults
) -> None:
    run = await running(services)
    first, grant = await take(channel, run)
    second, _ = await take(channel, run, attempt=2)

    with pytest.raises(FencedError):
        await results.put(result(run, grant), pieces())

    second.emit(COMPLETED)
    await second.flush()
    with pytest.raises(AgentRunnerError):
        await results.put(result(run, grant), pieces())
    assert await everything(world) == []
    await first.aclose()
    await second.aclose()


async def test_an_execution_that_has_ended_or_is_gone_takes_no_results(
    world: World, services: Services, channel: Channel, results: GrpcToolResults
) -> None:
    run = await running(services)
    sink, grant = await take(channel, run)
    sink.emit(COMPLETED)
    await sink.flush()
    await sink.aclose()

    with pytest.raises(FailedPreconditionError, match="has ended"):
        await results.put(result(run, grant), pieces())
    await services.executions.delete(run.metadata.id)
    for execution_id in (run.metadata.id, "aex-../../skills", "../skills", "skills/acme", "no/such"):
        with pytest.raises(NotFoundError):
            await results.put(result(run, grant, execution_id=execution_id), pieces())
    assert await everything(world) == []


async def test_a_result_is_kept_as_announced_or_not_at_all(
    world: World, services: Services, channel: Channel, results: GrpcToolResults
) -> None:
    run = await running(services)
    sink, grant = await take(channel, run)

    for wrong in (
        {"size": len(TEXT) + 1},
        {"size": len(TEXT) - 1},
        {"size": 0},
        {"size": MOST_KEPT + 1},
        {"sha256": b"x" * 32},
        {"sha256": b"../../../../skills"},
        {"tool_call_id": ""},
    ):
        with pytest.raises(InvalidRequestError):
            await results.put(result(run, grant, **wrong), pieces())
    with pytest.raises(InvalidRequestError, match="chunk"):
        await results.put(result(run, grant), iter([TEXT]))

    assert await everything(world) == []
    await sink.aclose()


async def test_an_upload_that_breaks_off_leaves_nothing(
    world: World, services: Services, channel: Channel, results: GrpcToolResults
) -> None:
    run = await running(services)
    sink, grant = await take(channel, run)
    header = UploadToolResultHeader(
        execution_id=run.metadata.id,
        attempt=grant.attempt,
        token=grant.token,
        tool_call_id="c",
        size_bytes=len(TEXT),
        sha256=hashlib.sha256(TEXT).digest(),
    )
    method = "/agent_runner.v1.RunnerService/UploadToolResult"
    make: Any = channel._method(method, channel._channel.stream_unary, UploadToolResultResponse)
    call = make()
    await call.write(UploadToolResultRequest(header=header))
    await call.write(UploadToolResultRequest(chunk=TEXT[:200_000]))
    call.cancel()

    for messages in ([UploadToolResultRequest(chunk=b"x")], [UploadToolResultRequest(header=header)] * 2, []):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await make(iter(messages))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await everything(world) == []
    await sink.aclose()


@pytest.mark.parametrize(
    "call_id",
    ["call-9", "../call-1", "call-1/../call-1", "..", "/etc/passwd", "\x00", "call-1\n", "x" * 100_000],
)
async def test_a_call_is_found_by_its_own_name_alone(
    services: Services, channel: Channel, results: GrpcToolResults, call_id: str
) -> None:
    run = await running(services)
    sink, grant = await take(channel, run)
    key = await results.put(result(run, grant), pieces())
    sink.emit(calls("call-1"))
    sink.emit(ended(key))
    await sink.flush()

    with pytest.raises(NotFoundError, match=r"Tool call|tool call"):
        await read(results, run, call_id)
    await sink.aclose()


async def test_a_call_named_like_a_path_is_kept_like_any_other(
    world: World, services: Services, channel: Channel, results: GrpcToolResults
) -> None:
    run = await running(services)
    sink, grant = await take(channel, run)
    name = "../../skills/acme/x.zip"

    key = await results.put(result(run, grant, tool_call_id=name), pieces())
    sink.emit(calls(name))
    sink.emit(ended(key, name))
    await sink.flush()

    assert await read(results, run, name) == TEXT
    assert all(path.startswith(f"executions/{run.metadata.id}/") for path in await everything(world))
    await sink.aclose()


async def test_an_event_that_names_what_is_of_others_opens_nothing(
    world: World, services: Services, channel: Channel, results: GrpcToolResults
) -> None:
    run, other = await running(services), await running(services)
    (sink, _), (others, grant) = await take(channel, run), await take(channel, other)
    foreign = await results.put(result(other, grant), pieces())
    keys = [
        foreign,
        foreign.replace(other.metadata.id, f"{run.metadata.id}/../{other.metadata.id}"),
        "skills/acme/pdf/secret.zip",
        f"executions/{run.metadata.id}x/tool-results/a",
        "/etc/passwd",
    ]
    for number, key in enumerate(keys):
        sink.emit(calls(f"call-{number}"))
        sink.emit(ended(key, f"call-{number}"))
    await sink.flush()

    for number in range(len(keys)):
        with pytest.raises(NotFoundError, match="not kept any more"):
            await read(results, run, f"call-{number}")
    await services.sessions.delete(run.spec.session_id)
    assert await everything(world) == [foreign]
    for held in (sink, others):
        await held.aclose()


async def test_a_status_of_another_runner_opens_nothing_either(
    services: Services, channel: Channel, results: GrpcToolResults
) -> None:
    run, other = await running(services), await running(services)
    sink, grant = await take(channel, other)
    update = AgentExecutionUpdateStatusInput(execution_id=run.metadata.id)
    call = ToolCall(id="call-1", name="execute", status=TOOL_CALL_COMPLETED, result="short")
    call.artifact_key = await results.put(result(other, grant), pieces())
    update.status.tool_calls.append(call)
    await services.executions.update_status(update)

    with pytest.raises(NotFoundError, match="not kept any more"):
        await read(results, run)
    await sink.aclose()


async def test_a_call_that_runs_has_no_result_yet(
    services: Services, channel: Channel, results: GrpcToolResults
) -> None:
    run = await running(services)
    sink, _ = await take(channel, run)
    sink.emit(calls("call-1"))
    await sink.flush()

    with pytest.raises(FailedPreconditionError, match="has not ended"):
        await read(results, run)
    await sink.aclose()


async def test_an_artifact_store_that_is_away_is_told(
    world: World, services: Services, channel: Channel, results: GrpcToolResults, monkeypatch: Any
) -> None:
    run = await running(services)
    sink, grant = await take(channel, run)

    async def away(*_: object) -> int:
        raise UnavailableError("The artifact store is away.")

    monkeypatch.setattr(world.artifacts, "put", away)

    with pytest.raises(UnavailableError, match="is away"):
        await results.put(result(run, grant), pieces())
    await sink.aclose()


async def test_a_result_that_comes_while_its_execution_is_removed_is_not_left_behind(
    world: World, services: Services, channel: Channel
) -> None:
    run = await running(services)
    sink, grant = await take(channel, run)
    header = UploadToolResultHeader(
        execution_id=run.metadata.id,
        attempt=grant.attempt,
        token=grant.token,
        tool_call_id="c",
        size_bytes=len(TEXT),
        sha256=hashlib.sha256(TEXT).digest(),
    )
    begun, removed = asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield TEXT[:100]
        begun.set()
        await removed.wait()
        yield TEXT[100:]

    keeping = asyncio.create_task(services.results.keep(header, chunks()))
    await begun.wait()
    await services.executions.delete(run.metadata.id)
    removed.set()

    with pytest.raises(NotFoundError):
        await keeping
    assert await everything(world) == []
    await sink.aclose()


async def test_an_execution_that_kept_nothing_is_removed_without_the_artifact_store(
    world: World, services: Services, channel: Channel, results: GrpcToolResults, monkeypatch: Any
) -> None:
    run, other = await running(services), await running(services)
    sink, grant = await take(channel, run)
    await results.put(result(run, grant), pieces())

    async def away(*_: object) -> int:
        raise UnavailableError("The artifact store is away.")

    monkeypatch.setattr(world.artifacts, "delete_under", away)
    await services.executions.delete(other.metadata.id)
    with pytest.raises(UnavailableError):
        await services.executions.delete(run.metadata.id)
    monkeypatch.undo()

    await services.executions.delete(run.metadata.id)
    assert await everything(world) == []
    await sink.aclose()
