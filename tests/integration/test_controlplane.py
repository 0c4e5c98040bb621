"""The API over real gRPC, by clients that know its protos alone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any, NoReturn

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pool
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from unit.services.conftest import World
from unit.services.fakes.resources import (
    COMPLETED,
    IN_PROGRESS,
    agent,
    context,
    environment,
    execution,
    instance,
    mcp_server,
    says,
    session,
)
from unit.services.fakes.runners import Runner

from agent_runner import errors
from agent_runner.controlplane._routes import Routes
from agent_runner.controlplane._status import CODES, code_of, status_of
from agent_runner.controlplane.server import ControlPlane
from agent_runner.controlplane.server_info import ServerController
from agent_runner.errors import (
    AgentRunnerError,
    InvalidRequestError,
    SettingsError,
    UnavailableError,
    Violation,
)
from agent_runner.services.container import Services
from agent_runner.v1 import (
    execution_service_pb2_grpc,
    resource_service_pb2,
    resource_service_pb2_grpc,
    runner_service_pb2,
    runner_service_pb2_grpc,
    server_service_pb2,
    server_service_pb2_grpc,
)
from agent_runner.v1.execution_service_pb2 import CancelExecutionRequest, WatchExecutionRequest
from ai.stigmer.agentic.agent.v1 import command_pb2_grpc as agent_command
from ai.stigmer.agentic.agent.v1 import query_pb2_grpc as agent_query
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agent.v1.io_pb2 import AgentId
from ai.stigmer.agentic.agentexecution.v1 import command_pb2_grpc as execution_command
from ai.stigmer.agentic.agentexecution.v1 import query_pb2_grpc as execution_query
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.command_pb2 import AgentExecutionUpdateStatusInput
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_COMPLETED,
    EXECUTION_IN_PROGRESS,
    EXECUTION_PENDING,
    MESSAGE_AI,
)
from ai.stigmer.agentic.agentexecution.v1.io_pb2 import (
    AgentExecutionId,
    ListAgentExecutionsBySessionRequest,
    ListAgentExecutionsRequest,
)
from ai.stigmer.agentic.agentinstance.v1 import command_pb2_grpc as instance_command
from ai.stigmer.agentic.agentinstance.v1 import query_pb2_grpc as instance_query
from ai.stigmer.agentic.agentinstance.v1.io_pb2 import GetAgentInstancesByAgentRequest
from ai.stigmer.agentic.environment.v1 import command_pb2_grpc as environment_command
from ai.stigmer.agentic.environment.v1 import query_pb2_grpc as environment_query
from ai.stigmer.agentic.executioncontext.v1 import command_pb2_grpc as context_command
from ai.stigmer.agentic.mcpserver.v1 import command_pb2_grpc as mcp_command
from ai.stigmer.agentic.session.v1 import command_pb2_grpc as session_command
from ai.stigmer.agentic.session.v1 import query_pb2_grpc as session_query
from ai.stigmer.agentic.session.v1.io_pb2 import ListSessionsByAgentRequest, ListSessionsRequest
from ai.stigmer.commons.apiresource.io_pb2 import (
    ApiResourceDeleteInput,
    ApiResourceId,
    ApiResourceReference,
)

SOON = timedelta(milliseconds=300)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def services(world: World) -> Services:
    return world.process()


@pytest.fixture
async def port(services: Services) -> AsyncIterator[int]:
    server = ControlPlane(
        services,
        address="127.0.0.1:0",
        api_key=None,
        version="1.2.3",
        temporal_address="127.0.0.1:7233",
    )
    yield await server.start()
    await server.stop(0)


@pytest.fixture
async def channel(port: int) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


class Api:
    """Stubs of the Stigmer API."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.agents: Any = agent_command.AgentCommandControllerStub(channel)
        self.agents_query: Any = agent_query.AgentQueryControllerStub(channel)
        self.instances: Any = instance_command.AgentInstanceCommandControllerStub(channel)
        self.instances_query: Any = instance_query.AgentInstanceQueryControllerStub(channel)
        self.sessions: Any = session_command.SessionCommandControllerStub(channel)
        self.sessions_query: Any = session_query.SessionQueryControllerStub(channel)
        self.executions: Any = execution_command.AgentExecutionCommandControllerStub(channel)
        self.executions_query: Any = execution_query.AgentExecutionQueryControllerStub(channel)
        self.environments: Any = environment_command.EnvironmentCommandControllerStub(channel)
        self.environments_query: Any = environment_query.EnvironmentQueryControllerStub(channel)
        self.contexts: Any = context_command.ExecutionContextCommandControllerStub(channel)
        self.mcp_servers: Any = mcp_command.McpServerCommandControllerStub(channel)


@pytest.fixture
def api(channel: grpc.aio.Channel) -> Api:
    return Api(channel)


@pytest.fixture
async def helper(api: Api) -> Agent:
    made: Agent = await api.agents.create(agent())
    return made


def details_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    trailers = dict(error.trailing_metadata() or ())
    raw = trailers["grpc-status-details-bin"]
    assert isinstance(raw, bytes)
    return status_pb2.Status.FromString(raw)


async def states_of(call: Any) -> list[Any]:
    """What a stream still has, by `read`, since a call may have been read from before."""
    states = []
    while (state := await call.read()) is not grpc.aio.EOF:
        states.append(state)
    if await call.code() is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            await call.code(), await call.initial_metadata(), await call.trailing_metadata()
        )
    return states


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def update(api: Api, execution_id: str, status: AgentExecutionStatus) -> AgentExecution:
    request = AgentExecutionUpdateStatusInput(execution_id=execution_id, status=status)
    made: AgentExecution = await api.executions.updateStatus(request)
    return made


# The whole way


async def test_a_client_of_the_stigmer_api_follows_an_execution_from_first_to_last(api: Api) -> None:
    made = await api.agents.create(agent())
    second = await api.instances.create(instance(made.metadata.id))
    talk = await api.sessions.create(session(second.metadata.id))
    run = await api.executions.create(execution(session_id=talk.metadata.id))
    assert run.status.phase == EXECUTION_PENDING
    following = api.executions_query.subscribe(AgentExecutionId(value=run.metadata.id))
    states = [await following.read()]
    status = AgentExecutionStatus(phase=EXECUTION_IN_PROGRESS)
    for text in ("Let me see.", "It is 42."):
        status.messages.add(type=MESSAGE_AI, content=text)
        await update(api, run.metadata.id, status)
        while len(states[-1].status.messages) < len(status.messages):
            states.append(await following.read())
    status.phase = EXECUTION_COMPLETED
    await update(api, run.metadata.id, status)
    states += await asyncio.wait_for(states_of(following), 120)

    phases = [state.status.phase for state in states]
    assert phases == sorted(phases)
    assert set(phases) == {EXECUTION_PENDING, EXECUTION_IN_PROGRESS, EXECUTION_COMPLETED}
    counts = [len(state.status.messages) for state in states]
    assert counts == sorted(counts)
    assert states[-1].status.messages[1].content == "It is 42."
    late = api.executions_query.subscribe(AgentExecutionId(value=run.metadata.id))
    finished = await asyncio.wait_for(states_of(late), 120)
    assert [state.status.phase for state in finished] == [EXECUTION_COMPLETED]
    assert await api.executions_query.get(AgentExecutionId(value=run.metadata.id)) == finished[0]


async def test_a_runner_and_a_watcher_meet_over_our_services(
    channel: grpc.aio.Channel, api: Api, helper: Agent
) -> None:
    runs: Any = runner_service_pb2_grpc.RunnerServiceStub(channel)
    watches: Any = execution_service_pb2_grpc.ExecutionServiceStub(channel)
    run = await api.executions.create(execution(agent_id=helper.metadata.id))
    watching = watches.WatchExecution(WatchExecutionRequest(execution_id=run.metadata.id))
    granted = await runs.StartAttempt(
        runner_service_pb2.StartAttemptRequest(execution_id=run.metadata.id, worker="test")
    )
    assert granted.execution.spec.message == "Hello"
    for position, event in enumerate((IN_PROGRESS, says("m", "Hi"), COMPLETED)):
        await runs.AppendEvents(
            runner_service_pb2.AppendEventsRequest(
                execution_id=run.metadata.id, attempt=granted.attempt, position=position, events=[event]
            )
        )

    seen = [event async for response in watching for event in response.events]

    assert [event.seq for event in seen] == [1, 2, 3, 4, 5]
    again = watches.WatchExecution(WatchExecutionRequest(execution_id=run.metadata.id, after_seq=3))
    assert [event.seq async for response in again for event in response.events] == [4, 5]


async def test_a_second_message_waits_and_can_be_cancelled(
    channel: grpc.aio.Channel, api: Api, helper: Agent
) -> None:
    ours: Any = execution_service_pb2_grpc.ExecutionServiceStub(channel)
    first = await api.executions.create(execution(agent_id=helper.metadata.id))
    second = await api.executions.create(execution(session_id=first.spec.session_id))
    assert second.status.run.queue_position == 1

    answer = await ours.CancelExecution(CancelExecutionRequest(execution_id=second.metadata.id, reason="no"))

    assert answer.execution.status.phase == EXECUTION_CANCELLED
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await ours.CancelExecution(CancelExecutionRequest(execution_id=second.metadata.id))
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_every_kind_is_kept(api: Api, helper: Agent) -> None:
    stage = await api.environments.apply(environment(TOKEN="x"))
    assert await api.environments_query.get(ApiResourceId(value=stage.metadata.id)) == stage
    found = await api.environments_query.getByReference(ApiResourceReference(slug="staging", kind=53))  # type: ignore[arg-type]
    assert found == stage
    assert await api.environments.delete(ApiResourceDeleteInput(resource_id=stage.metadata.id)) == stage
    assert (await api.contexts.create(context())).metadata.id.startswith("exec-")
    assert (await api.mcp_servers.apply(mcp_server())).metadata.id.startswith("mcp-")
    instances = await api.instances_query.getByAgent(
        GetAgentInstancesByAgentRequest(agent_id=helper.metadata.id)
    )
    assert (instances.total_count, len(instances.items)) == (1, 1)
    assert await api.agents_query.get(AgentId(value=helper.metadata.id)) == helper


async def test_lists_come_in_pages(channel: grpc.aio.Channel, api: Api, helper: Agent) -> None:
    made = [await api.executions.create(execution(agent_id=helper.metadata.id)) for _ in range(5)]
    ids = [one.metadata.id for one in reversed(made)]

    first = await api.executions_query.list(ListAgentExecutionsRequest(page_size=2))
    second = await api.executions_query.list(
        ListAgentExecutionsRequest(page_size=2, page_token=first.next_page_token)
    )
    third = await api.executions_query.list(ListAgentExecutionsRequest(page_size=2, page_token="3"))

    assert [e.metadata.id for page in (first, second, third) for e in page.entries] == ids
    assert (first.total_pages, third.next_page_token) == (3, "")
    pending = await api.executions_query.list(ListAgentExecutionsRequest(phase=EXECUTION_PENDING))
    assert len(pending.entries) == 5
    one = await api.executions_query.listBySession(
        ListAgentExecutionsBySessionRequest(session_id=made[0].spec.session_id)
    )
    assert [e.metadata.id for e in one.entries] == [made[0].metadata.id]
    assert len((await api.sessions_query.list(ListSessionsRequest())).entries) == 5
    by_agent = ListSessionsByAgentRequest(agent_id=helper.status.default_instance_id)
    assert (await api.sessions_query.listByAgent(by_agent)).total_pages == 1
    ours: Any = resource_service_pb2_grpc.ResourceServiceStub(channel)
    everything = await ours.ListResources(resource_service_pb2.ListResourcesRequest(kind=41, page_size=4))  # type: ignore[arg-type]
    unpacked = AgentExecution()
    assert everything.items[0].Unpack(unpacked)
    assert (unpacked.metadata.id, unpacked.status.phase) == (ids[0], EXECUTION_PENDING)
    assert everything.next_page_token == ids[3]


async def test_the_server_tells_what_it_is(channel: grpc.aio.Channel, world: World) -> None:
    ours: Any = server_service_pb2_grpc.ServerServiceStub(channel)
    info = await ours.GetServerInfo(server_service_pb2.GetServerInfoRequest())
    assert (info.version, info.temporal_address, info.temporal_reachable) == ("1.2.3", "127.0.0.1:7233", True)
    world.workflows.away = True
    assert not (await ours.GetServerInfo(server_service_pb2.GetServerInfoRequest())).temporal_reachable


# Errors


async def test_what_is_wrong_with_a_request_is_told_field_by_field(api: Api) -> None:
    request = agent()
    request.spec.instructions = "short"
    request.spec.mcp_servers.add()

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await api.agents.create(request)

    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    details = details_of(raised.value).details
    assert details[0].Unpack(info)
    assert details[1].Unpack(bad)
    assert (info.reason, info.domain) == ("InvalidRequest", "agent-runner")
    assert [(v.field, v.reason) for v in bad.field_violations] == [
        ("spec.instructions", "string.min_len"),
        ("spec.mcp_servers[0].name", "required"),
    ]


@pytest.mark.parametrize(
    ("method", "code"),
    [
        (lambda api: api.agents.create(agent()), grpc.StatusCode.ALREADY_EXISTS),
        (lambda api: api.agents_query.get(AgentId(value="agt-none")), grpc.StatusCode.NOT_FOUND),
        (lambda api: api.agents_query.get(AgentId()), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda api: api.executions.create(execution()), grpc.StatusCode.INVALID_ARGUMENT),
        (
            lambda api: api.executions.create(execution(agent_id="agt-none", message="x" * 5_000_000)),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (
            lambda api: api.executions.create(execution(agent_id="agt-none", message="x" * (17 << 20))),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ),
    ],
)
async def test_errors_have_the_code_that_says_what_to_do(
    api: Api, helper: Agent, method: Any, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await method(api)
    assert raised.value.code() is code


async def test_without_temporal_the_client_may_try_again(api: Api, world: World, helper: Agent) -> None:
    world.workflows.away = True
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await api.executions.create(execution(agent_id=helper.metadata.id))
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "TEMPORAL_ADDRESS" in (raised.value.details() or "")
    assert not (await api.executions_query.list(ListAgentExecutionsRequest())).entries


async def test_bytes_that_are_no_message_are_the_clients_fault(channel: grpc.aio.Channel) -> None:
    for name in ("create", "apply"):
        call: Any = channel.unary_unary(f"/ai.stigmer.agentic.agent.v1.AgentCommandController/{name}")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(b"\xff\xff\xff")
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_method_that_is_not_there_is_unimplemented(channel: grpc.aio.Channel) -> None:
    call: Any = channel.unary_unary("/ai.stigmer.agentic.agent.v1.AgentCommandController/nothing")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(b"")
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_every_method_of_the_api_is_answered(channel: grpc.aio.Channel, services: Services) -> None:
    routes = Routes(services, ServerController(services, "1", ""), SOON)
    pool = descriptor_pool.Default()
    for method in (m for name in routes.names for m in pool.FindServiceByName(name).methods):
        if not method.client_streaming and not method.server_streaming:
            call: Any = channel.unary_unary(f"/{method.containing_service.full_name}/{method.name}")
            code = await call(b"\xff").code()
            assert code is grpc.StatusCode.INVALID_ARGUMENT, method.full_name


async def test_a_fault_inside_ends_one_call_and_tells_nothing(
    api: Api, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("secret path /x")

    monkeypatch.setattr(services.agents._store, "put", broken)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await api.agents.create(agent())
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (raised.value.details() or "")
    monkeypatch.undo()
    assert await api.agents.create(agent())


def test_every_error_has_a_code() -> None:
    ours = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, AgentRunnerError) and kind is not AgentRunnerError
    }
    assert ours <= set(CODES)


def test_statuses_stay_small_enough_to_travel() -> None:
    error = InvalidRequestError([Violation("ü" * 9_000, "ü" * 9_000)] * 1_000)
    status = status_of(error)
    size = len((status.details or "").encode()) + sum(len(v) for _k, v in status.trailing_metadata or ())
    assert size < 8_000
    assert code_of(error) is grpc.StatusCode.INVALID_ARGUMENT


# The server


async def test_a_key_is_asked_for_when_there_is_one(world: World) -> None:
    server = ControlPlane(world.process(), address="127.0.0.1:0", api_key="geheim-ü", version="1")
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        api = Api(channel)
        for metadata in (None, [("authorization", "Bearer wrong")], [("authorization", "geheim")]):
            for call in (
                api.agents.create(agent(), metadata=metadata),
                states_of(api.executions_query.subscribe(AgentExecutionId(value="aex-1"), metadata=metadata)),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await call
                assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await server.stop(0)


async def test_the_right_key_opens(world: World) -> None:
    server = ControlPlane(world.process(), address="127.0.0.1:0", api_key="right", version="1")
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert await Api(channel).agents.create(agent(), metadata=[("authorization", "bearer right")])
    await server.stop(0)


async def test_reflection_lists_every_service(channel: grpc.aio.Channel) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    async for answer in stub.ServerReflectionInfo(asked):
        names = {service.name for service in answer.list_services_response.service}
    assert "ai.stigmer.agentic.agentexecution.v1.AgentExecutionQueryController" in names
    assert "agent_runner.v1.ExecutionService" in names
    assert len(names) >= 20


async def test_a_taken_port_is_named(world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SettingsError, match=address):
            await ControlPlane(world.process(), address=address, api_key=None, version="1").start()


async def test_two_servers_never_share_a_port(world: World, port: int) -> None:
    with pytest.raises(SettingsError):
        await ControlPlane(world.process(), address=f"127.0.0.1:{port}", api_key=None, version="1").start()


async def test_a_start_goes_on_with_what_a_crash_left(world: World) -> None:
    before = world.process()
    made = await before.agents.create(agent())
    run = await before.executions.create(execution(agent_id=made.metadata.id))
    world.workflows.started.clear()
    world.workflows.open.clear()

    server = ControlPlane(world.process(), address="127.0.0.1:0", api_key=None, version="1")
    await server.start()
    await until(lambda: run.metadata.id in world.workflows.started)
    await server.stop(0)


async def test_variables_that_could_not_go_at_the_end_go_soon_after(
    world: World, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = execution(agent_id=(await services.agents.create(agent())).metadata.id)
    request.spec.runtime_env["A"].value = "b"
    running = await services.executions.create(request)
    runner = Runner(services, running.metadata.id)
    grant = await runner.start()
    await services.variables.resolve(running.metadata.id, grant.attempt, grant.token)
    failed, failures = asyncio.Event(), 0

    async def away(*_: object) -> NoReturn:
        nonlocal failures
        failures += 1
        if failures == 3:  # at the end, as the server starts, and once more
            failed.set()
        raise UnavailableError("not now")

    monkeypatch.setattr(world.store, "delete", away)
    await runner.send(COMPLETED)
    often = timedelta(milliseconds=10)
    server = ControlPlane(services, address="127.0.0.1:0", api_key=None, version="test", sweep_every=often)
    await server.start()
    await asyncio.wait_for(failed.wait(), 120)
    monkeypatch.undo()
    async with asyncio.timeout(120):
        while await world.store.list("execution_context"):  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(0.01)
    await server.stop(0)


async def test_a_stop_sends_watchers_away_at_once(world: World) -> None:
    server = ControlPlane(world.process(), address="127.0.0.1:0", api_key=None, version="1")
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        api = Api(channel)
        made = await api.agents.create(agent())
        run = await api.executions.create(execution(agent_id=made.metadata.id))
        following = api.executions_query.subscribe(AgentExecutionId(value=run.metadata.id))
        await following.read()
        async with asyncio.timeout(120):
            await server.stop(3600)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await states_of(following)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_watcher_that_reads_nothing_is_cut_off_and_goes_on_without_loss(services: Services) -> None:
    server = ControlPlane(services, address="127.0.0.1:0", api_key=None, version="1", slow_after=SOON)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as channel:
        await read_nothing_and_go_on(channel, services)
    await server.stop(0)


async def read_nothing_and_go_on(channel: grpc.aio.Channel, services: Services) -> None:
    api = Api(channel)
    helper = await api.agents.create(agent())
    watches: Any = execution_service_pb2_grpc.ExecutionServiceStub(channel)
    run = await api.executions.create(execution(agent_id=helper.metadata.id))
    lazy = watches.WatchExecution(WatchExecutionRequest(execution_id=run.metadata.id))
    await lazy.read()
    runner = Runner(services, run.metadata.id)
    await runner.start()
    for number in range(60):
        await runner.send(says(f"m{number}", "x" * 200_000))
    await runner.send(COMPLETED)
    live = services.events._logbook.lives.peek(run.metadata.id)
    assert live is not None
    await until(lambda: not live.watchers)

    seen = [1]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        while True:
            seen += [event.seq for event in (await lazy.read()).events]
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    rest = watches.WatchExecution(WatchExecutionRequest(execution_id=run.metadata.id, after_seq=seen[-1]))
    seen += [event.seq async for response in rest for event in response.events]
    assert seen == list(range(1, 64))


async def test_nothing_is_left_of_a_client_that_vanishes(
    port: int, api: Api, services: Services, helper: Agent
) -> None:
    run = await api.executions.create(execution(agent_id=helper.metadata.id))
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    following = Api(channel).executions_query.subscribe(AgentExecutionId(value=run.metadata.id))
    await following.read()
    live = services.events._logbook.lives.peek(run.metadata.id)
    assert live is not None
    assert live.watchers == 1
    await channel.close()

    await until(lambda: not live.watchers)
