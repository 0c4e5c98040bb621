"""Runners with a key of their own: who has the API key alone cannot pass for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest
from google.protobuf.message_factory import GetMessageClass
from integration.fakes.runner_stack import stack
from unit.services.conftest import World

from agent_runner.adapters.controlplane.keys import check_key
from agent_runner.adapters.machine.ports import free_port
from agent_runner.adapters.status.native import NativeSinks
from agent_runner.bootstrap.runner import serve_runner
from agent_runner.client import AgentRunner
from agent_runner.client.channels import Channel
from agent_runner.controlplane._auth import Keys
from agent_runner.controlplane.server import ControlPlane
from agent_runner.errors import NotFoundError, PermissionDeniedError, UnauthenticatedError
from agent_runner.ports.status_sinks import AttemptOf
from agent_runner.settings import load
from agent_runner.v1 import runner_service_pb2
from ai.stigmer.agentic.agentexecution.v1.command_pb2 import DESCRIPTOR as COMMANDS
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED

API, RUNNER = "key of people", "key of runners"
SERVICE = runner_service_pb2.DESCRIPTOR.services_by_name["RunnerService"]
CALLS = [f"/{SERVICE.full_name}/{method.name}" for method in SERVICE.methods]
UPDATE = "/ai.stigmer.agentic.agentexecution.v1.AgentExecutionCommandController/updateStatus"
OTHER = "/agent_runner.v1.ServerService/GetServerInfo"
HEALTH = "/grpc.health.v1.Health/Check"


@pytest.fixture
async def address() -> AsyncIterator[str]:
    server = ControlPlane(
        World().process(), address="127.0.0.1:0", api_key=API, runner_key=RUNNER, version="1"
    )
    yield f"127.0.0.1:{await server.start()}"
    await server.stop(0)


class Case(NamedTuple):
    keys: Keys
    shown: str | None
    opens: Mapping[str, type[Exception] | None]


@pytest.mark.parametrize(
    "case",
    [
        Case(Keys(None), None, {UPDATE: None, OTHER: None, HEALTH: None}),
        Case(Keys(API), None, {UPDATE: UnauthenticatedError, OTHER: UnauthenticatedError, HEALTH: None}),
        Case(Keys(API), API, {UPDATE: None, OTHER: None, HEALTH: None}),
        Case(Keys(API), "", {OTHER: UnauthenticatedError}),
        Case(Keys(API, RUNNER), API, {UPDATE: PermissionDeniedError, OTHER: None, HEALTH: None}),
        Case(Keys(API, RUNNER), RUNNER, {UPDATE: None, OTHER: None, HEALTH: None}),
        Case(Keys(API, RUNNER), "guess", {UPDATE: UnauthenticatedError, OTHER: UnauthenticatedError}),
        Case(Keys(None, RUNNER), None, {UPDATE: PermissionDeniedError, OTHER: None}),
        Case(Keys(None, RUNNER), RUNNER, {UPDATE: None, OTHER: None}),
    ],
)
def test_what_each_key_opens(case: Case) -> None:
    shown = None if case.shown is None else case.shown.encode()
    found = {method: case.keys.refusal(method, shown) for method in case.opens}
    assert {method: None if error is None else type(error) for method, error in found.items()} == case.opens


def test_keys_are_not_in_what_is_logged() -> None:
    assert API not in repr(Keys(API, RUNNER))
    assert RUNNER not in repr(Keys(API, RUNNER))


async def code_of(channel: grpc.aio.Channel, method: Any, path: str, key: str) -> grpc.StatusCode:
    """The status of a call with an empty request, of whichever kind it is."""
    kind = ("stream" if method.client_streaming else "unary") + (
        "_stream" if method.server_streaming else "_unary"
    )
    call = getattr(channel, kind)(
        path,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    request = GetMessageClass(method.input_type)()
    given = iter([request]) if method.client_streaming else request
    running = call(given, metadata=[("authorization", f"Bearer {key}")], timeout=120)
    code: grpc.StatusCode = await running.code()
    return code


async def test_the_api_key_opens_nothing_that_runners_alone_do(address: str) -> None:
    update = COMMANDS.services_by_name["AgentExecutionCommandController"].methods_by_name["updateStatus"]
    methods = [*zip(SERVICE.methods, CALLS, strict=True), (update, UPDATE)]
    async with grpc.aio.insecure_channel(address) as channel:
        for method, path in methods:
            assert await code_of(channel, method, path, API) is grpc.StatusCode.PERMISSION_DENIED, path
            refused = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
            assert await code_of(channel, method, path, RUNNER) not in refused, path


async def test_people_need_the_api_key_alone(address: str) -> None:
    async with AgentRunner(address, API, org="local") as runner:
        assert (await runner.server_info()).version == "1"


async def test_an_execution_cannot_be_taken_over_with_the_api_key(address: str) -> None:
    channel = Channel(address, API)
    with pytest.raises(PermissionDeniedError, match="AGENT_RUNNER_RUNNER_KEY"):
        await NativeSinks(channel).open(AttemptOf("aex-1", "mallory"))
    await channel.aclose()
    channel = Channel(address, RUNNER)
    with pytest.raises(NotFoundError):
        await NativeSinks(channel).open(AttemptOf("aex-1", "a runner"))
    await channel.aclose()


async def test_a_worker_without_the_key_does_not_begin(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ADDRESS", address), ("API_KEY", API), ("DATA_DIR", str(tmp_path))):
        monkeypatch.setenv(f"AGENT_RUNNER_{name}", value)
    with pytest.raises(PermissionDeniedError, match="AGENT_RUNNER_RUNNER_KEY"):
        await serve_runner(load(), asyncio.Event())


async def test_nobody_is_refused_by_a_control_plane_that_is_away() -> None:
    channel = Channel(f"127.0.0.1:{free_port()}", "any")
    await check_key(channel)
    await channel.aclose()


async def test_an_execution_that_a_refused_worker_took_goes_on_elsewhere(tmp_path: Path) -> None:
    refusals = 0

    async def refuse_once(method: str) -> None:
        nonlocal refusals
        if method == "StartAttempt" and not refusals:
            refusals += 1
            raise PermissionDeniedError("Only runners may do that.")

    async with stack(tmp_path) as world:
        world.server.before = refuse_once
        await world.run_worker()
        ended = await world.ended(await world.create(await world.agent("turns: [{steps: [done]}]")))

    assert refusals == 1
    assert ended.status.phase == EXECUTION_COMPLETED
    assert [message.content for message in ended.status.messages][-1] == "done"
