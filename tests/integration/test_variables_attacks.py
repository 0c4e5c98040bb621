"""Variables of a running execution, asked for by somebody who may call the API but does not run it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from unit.services.conftest import World
from unit.services.fakes.resources import agent, execution

from agent_runner.adapters.controlplane.environments import GrpcEnvironmentResolver
from agent_runner.adapters.secrets.keyring import Keyring, new_key
from agent_runner.adapters.status.native import NativeSinks
from agent_runner.client.channels import Channel
from agent_runner.controlplane.server import ControlPlane
from agent_runner.errors import ConflictError, PermissionDeniedError
from agent_runner.ports.status_sinks import AttemptOf, Grant
from agent_runner.services._attempt_tokens import digest_of
from agent_runner.services.container import Services, build_services
from agent_runner.v1 import execution_service_pb2_grpc
from agent_runner.v1.execution_service_pb2 import WatchExecutionRequest
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution

SECRET = "canary-4711-abcdef"


@pytest.fixture
async def services() -> AsyncIterator[Services]:
    world = World()
    made = build_services(
        world.store,
        world.log,
        world.announcer,
        world.workflows,
        world.artifacts,
        secrets=Keyring.parse(f"k1:{new_key()}"),
    )
    yield made
    await made.aclose()


@pytest.fixture
async def address(services: Services) -> AsyncIterator[str]:
    server = ControlPlane(
        services,
        address="127.0.0.1:0",
        api_key=None,
        version="1.2.3",
        temporal_address="127.0.0.1:7233",
    )
    yield f"127.0.0.1:{await server.start()}"
    await server.stop(0)


@pytest.fixture
async def channel(address: str) -> AsyncIterator[Channel]:
    channel = Channel(address)
    yield channel
    await channel.aclose()


async def running(services: Services) -> AgentExecution:
    request = execution(agent_id=(await services.agents.apply(agent())).metadata.id)
    value = request.spec.runtime_env["API_TOKEN"]
    value.value, value.is_secret = SECRET, True
    return await services.executions.create(request)


async def take(channel: Channel, run: AgentExecution, attempt: int = 1) -> Grant:
    """Become the worker that holds an execution."""
    taken = AttemptOf(run.metadata.id, "test", workflow_run_id="run-1", activity_attempt=attempt)
    sink, grant = await NativeSinks(channel).open(taken)
    await sink.aclose()
    return grant


async def test_the_worker_that_took_an_execution_gets_its_variables(
    services: Services, channel: Channel
) -> None:
    run = await running(services)
    grant = await take(channel, run)

    found = await GrpcEnvironmentResolver(channel).resolve(run.metadata.id, grant.attempt, grant.token)

    assert found is not None
    assert found.values == {"API_TOKEN": SECRET}


async def test_id_and_attempt_of_a_running_execution_are_not_enough(
    services: Services, channel: Channel
) -> None:
    run, other = await running(services), await running(services)
    grant, others = await take(channel, run), await take(channel, other)
    resolver = GrpcEnvironmentResolver(channel)

    kept = digest_of(grant.token)
    for token in ("", "a guess", others.token, kept.hex(), kept.decode("latin-1"), grant.token.swapcase()):
        with pytest.raises(PermissionDeniedError, match=r"`token` is .*StartAttempt") as caught:
            await resolver.resolve(run.metadata.id, grant.attempt, token)
        assert SECRET not in str(caught.value)


async def test_the_token_of_an_earlier_attempt_opens_nothing(services: Services, channel: Channel) -> None:
    run = await running(services)
    first, second = await take(channel, run), await take(channel, run, attempt=2)
    resolver = GrpcEnvironmentResolver(channel)

    with pytest.raises(ConflictError):
        await resolver.resolve(run.metadata.id, first.attempt, first.token)
    with pytest.raises(PermissionDeniedError):
        await resolver.resolve(run.metadata.id, second.attempt, first.token)


async def test_nothing_that_can_be_read_tells_the_token(
    services: Services, channel: Channel, address: str
) -> None:
    run = await running(services)
    grant = await take(channel, run)
    await services.executions.cancel(run.metadata.id)
    await services.runs.terminate((await services.watches.status(run.metadata.id))[0], "enough")

    shown = repr(grant) + str(await services.executions.get(run.metadata.id))
    async with grpc.aio.insecure_channel(address) as plain:
        watches: Any = execution_service_pb2_grpc.ExecutionServiceStub(plain)
        async for answer in watches.WatchExecution(WatchExecutionRequest(execution_id=run.metadata.id)):
            shown += str(answer)

    assert grant.token
    assert grant.token not in shown
    assert digest_of(grant.token).hex() not in shown
