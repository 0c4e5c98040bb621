"""Calls within the process end as those over a socket do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from unit.services.conftest import World
from unit.services.fakes.resources import agent

from agent_runner import errors
from agent_runner.client.channels import Channel
from agent_runner.client.errors import DeadlineError, RemoteError, UnsupportedError
from agent_runner.client.local import LocalChannel
from agent_runner.controlplane.server import ControlPlane
from agent_runner.services.container import Services
from agent_runner.v1.execution_service_pb2 import WatchExecutionRequest, WatchExecutionResponse
from agent_runner.v1.server_service_pb2 import GetServerInfoRequest, GetServerInfoResponse
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agent.v1.io_pb2 import AgentId

KEY = "the key of this test"
CREATE = "/ai.stigmer.agentic.agent.v1.AgentCommandController/create"
GET = "/ai.stigmer.agentic.agent.v1.AgentQueryController/get"
WATCH = "/agent_runner.v1.ExecutionService/WatchExecution"


@dataclass
class Served:
    services: Services
    channel: Channel
    address: str


@pytest.fixture(params=["socket", "local"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    services = World().process()
    server = ControlPlane(services, address="127.0.0.1:0", api_key=KEY, version="1")
    address = f"127.0.0.1:{await server.start()}"
    channel = Channel(address, KEY) if request.param == "socket" else LocalChannel(server.local, address, KEY)
    yield Served(services, channel, address)
    await channel.aclose()
    await server.stop(0)


async def test_what_was_created_is_read(served: Served) -> None:
    made = await served.channel.unary(CREATE, agent(), Agent)
    read = await served.channel.unary(GET, AgentId(value=made.metadata.id), Agent)

    assert read == made
    # It is the caller's own: the next one reads what is stored.
    read.metadata.name = "changed by the caller"
    assert await served.channel.unary(GET, AgentId(value=made.metadata.id), Agent) == made


async def test_what_is_not_there_is_named(served: Served) -> None:
    with pytest.raises(errors.NotFoundError, match="agt-01"):
        await served.channel.unary(GET, AgentId(value="agt-01"), Agent)


async def test_a_wrong_field_is_named(served: Served) -> None:
    with pytest.raises(errors.InvalidRequestError) as raised:
        await served.channel.unary(CREATE, Agent(), Agent)
    assert "metadata" in {violation.field.partition(".")[0] for violation in raised.value.violations}


@pytest.mark.parametrize("method", ["Nothing", "streamArtifact"])
async def test_an_unknown_method_is_refused(served: Served, method: str) -> None:
    with pytest.raises(UnsupportedError):
        await served.channel.unary(f"/agent_runner.v1.ServerService/{method}", Agent(), Agent)


async def test_a_fault_of_the_server_ends_the_call_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a secret of the inside")

    with monkeypatch.context() as patch:
        patch.setattr(served.services.agents._store, "get", broken)
        with pytest.raises(RemoteError) as raised:
            await served.channel.unary(GET, AgentId(value="agt-01"), Agent)
    assert raised.value.code == "INTERNAL"
    assert "inside" not in str(raised.value)
    await server_info(served)


async def server_info(served: Served) -> None:
    await served.channel.unary(
        "/agent_runner.v1.ServerService/GetServerInfo", GetServerInfoRequest(), GetServerInfoResponse
    )


async def test_no_answer_in_time_is_said(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    entered = asyncio.Event()
    await server_info(served)  # the line is there

    async def never(*_: Any, **__: Any) -> Any:
        entered.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(served.services.agents._store, "get", never)
    with pytest.raises(DeadlineError):
        await served.channel.unary(GET, AgentId(value="agt-01"), Agent, timeout=timedelta(seconds=2))
    assert entered.is_set()


async def test_streams_take_the_address(served: Served) -> None:
    watching = served.channel.stream(
        WATCH,
        WatchExecutionRequest(execution_id="aex-01"),
        WatchExecutionResponse,
        silence=timedelta(minutes=2),
    )
    with pytest.raises(Exception, match="aex-01"):
        async for _ in watching:
            pass
