from __future__ import annotations

import asyncio
from datetime import timedelta

import grpc
import pytest
from unit.client.small_server import SmallServer, log_of

from agent_runner import errors
from agent_runner.client import AgentRunner
from agent_runner.client.channels import UNARY_DEADLINE, address_and_key, parse_address
from agent_runner.client.errors import (
    DeadlineError,
    RemoteError,
    ServerUnreachableError,
    UnsupportedError,
    code_of,
)
from agent_runner.client.kinds import AGENT, EXECUTION, KINDS, kind_named
from agent_runner.v1.server_service_pb2 import GetServerInfoRequest, GetServerInfoResponse
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.commons.apiresource.apiresourcekind.api_resource_kind_pb2 import ApiResourceKind


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.NOT_FOUND, errors.NotFoundError),
        (grpc.StatusCode.ALREADY_EXISTS, errors.AlreadyExistsError),
        (grpc.StatusCode.ABORTED, errors.ConflictError),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.FailedPreconditionError),
        (grpc.StatusCode.UNAUTHENTICATED, errors.UnauthenticatedError),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDeniedError),
        (grpc.StatusCode.UNAVAILABLE, errors.UnavailableError),
        (grpc.StatusCode.UNIMPLEMENTED, UnsupportedError),
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequestError),
        (grpc.StatusCode.INTERNAL, RemoteError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, RemoteError),
    ],
)
async def test_a_status_code_comes_back_as_our_error_in_the_words_of_the_server(
    server: SmallServer, client: AgentRunner, code: grpc.StatusCode, expected: type[Exception]
) -> None:
    server.refuse = lambda method: (code, "because of the moon")

    with pytest.raises(expected, match="because of the moon") as caught:
        await client.resources.create(Agent())

    assert not isinstance(caught.value, ServerUnreachableError)
    assert isinstance(caught.value, errors.AgentRunnerError)
    if code is not grpc.StatusCode.PERMISSION_DENIED:
        assert code_of(caught.value) == code.name


async def test_violations_name_their_fields(server: SmallServer, client: AgentRunner) -> None:
    server.violations = [("spec.instructions", "is too short"), ("metadata", "is not there")]

    with pytest.raises(errors.InvalidRequestError) as caught:
        await client.apply(Agent())

    assert [(v.field, v.problem, v.rule) for v in caught.value.violations] == [
        ("spec.instructions", "is too short", "test"),
        ("metadata", "is not there", "test"),
    ]


async def test_a_server_that_is_not_there_is_told_quickly_with_its_address(server: SmallServer) -> None:
    await server.stop()

    async with AgentRunner(server.address) as client, asyncio.timeout(UNARY_DEADLINE.total_seconds() - 5):
        with pytest.raises(ServerUnreachableError, match=server.address):
            await client.get("agent", "a")

    await server.start()


async def test_a_read_is_tried_again_when_the_server_is_not_ready(
    server: SmallServer, client: AgentRunner
) -> None:
    await client.resources.create(Agent(metadata={"name": "a"}))
    refusals = [(grpc.StatusCode.UNAVAILABLE, "not yet")] * 2
    server.refuse = lambda method: refusals.pop() if refusals else None

    found = await client.get("agent", "a")

    assert found.metadata.slug == "a"  # type: ignore[attr-defined]
    assert refusals == []


async def test_a_write_is_never_tried_again(server: SmallServer, client: AgentRunner) -> None:
    server.refuse = lambda method: (grpc.StatusCode.UNAVAILABLE, "not yet")

    with pytest.raises(errors.UnavailableError):
        await client.resources.create(Agent())

    assert len(server.calls) == 1


async def test_a_call_ends_at_its_deadline(server: SmallServer, client: AgentRunner) -> None:
    server.answers.clear()
    with pytest.raises(DeadlineError):
        await client._channel.unary(
            "/agent_runner.v1.ServerService/GetServerInfo",
            GetServerInfoRequest(),
            GetServerInfoResponse,
            timeout=timedelta(milliseconds=50),
        )


async def test_the_key_goes_with_every_call(server: SmallServer) -> None:
    server.key = "s3cret"
    server.events = log_of(2)
    async with AgentRunner(server.address, "s3cret") as client:
        await client.apply(Agent(metadata={"name": "a"}))
        execution = await client.run("hello", agent="a")
    assert execution.spec.message == "hello"

    async with AgentRunner(server.address) as client:
        with pytest.raises(errors.UnauthenticatedError):
            await client.server_info()


async def test_lists_go_over_all_pages(server: SmallServer, client: AgentRunner) -> None:
    for number in range(450):
        server._put(AGENT, server.stored.setdefault("Agent", {}), Agent(metadata={"name": f"a{number}"}))

    assert len([a async for a in client.list("agents")]) == 450
    assert len([a async for a in client.list("agents", limit=7)]) == 7


async def test_an_unknown_name_comes_with_names_like_it(server: SmallServer, client: AgentRunner) -> None:
    for name in ("reviewer", "planner"):
        await client.apply(Agent(metadata={"name": name}))

    with pytest.raises(errors.NotFoundError, match="Did you mean reviewer"):
        await client.start("x", agent="reviewr")
    with pytest.raises(errors.NotFoundError, match="There are: planner, reviewer"):
        await client.start("x", agent="zzz")


async def test_latest_is_the_newest_execution(server: SmallServer, client: AgentRunner) -> None:
    with pytest.raises(errors.NotFoundError, match="no executions yet"):
        await client.get("execution", "latest")
    await client.apply(Agent(metadata={"name": "a"}))
    await client.start("first", agent="a")
    second = await client.start("second", agent="a")

    assert (await client.resources.get(EXECUTION, "latest")).metadata.id == second.metadata.id  # type: ignore[attr-defined]


async def test_an_id_may_be_written_with_an_underscore(server: SmallServer, client: AgentRunner) -> None:
    agent = await client.apply(Agent(metadata={"name": "a"}))

    assert (
        await client.get("agent", agent.metadata.id.replace("-", "_").upper().replace("AGT", "agt")) == agent
    )


async def test_deleting_returns_what_it_was(server: SmallServer, client: AgentRunner) -> None:
    await client.apply(Agent(metadata={"name": "a"}))

    assert (await client.delete("agent", "a")).metadata.slug == "a"  # type: ignore[attr-defined]
    assert server.stored["Agent"] == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost", ("localhost:7234", False)),
        ("127.0.0.1:80", ("127.0.0.1:80", False)),
        ("[::1]:7234", ("[::1]:7234", False)),
        ("http://h:1", ("h:1", False)),
        ("https://h", ("h:443", True)),
        ("https://[::1]:9", ("[::1]:9", True)),
        ("unix:/run/a.sock", ("unix:/run/a.sock", False)),
    ],
)
def test_addresses_in_every_form(text: str, expected: tuple[str, bool]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "a:b", "a:70000", "a b", "ftp://h", "http://h:x", "h:1/path", "::1"])
def test_a_wrong_address_is_named(text: str) -> None:
    with pytest.raises(errors.SettingsError, match="address"):
        parse_address(text)


def test_the_environment_says_where_and_with_which_key() -> None:
    assert address_and_key({}) == ("127.0.0.1:7234", None)
    assert address_and_key({"STIGMER_BACKEND_ENDPOINT": "s:1", "STIGMER_API_KEY": "k"}) == ("s:1", "k")
    assert address_and_key({"AGENT_RUNNER_ADDRESS": "a:1", "STIGMER_BACKEND_ENDPOINT": "s:1"})[0] == "a:1"


def test_every_kind_can_be_typed_in_all_its_spellings_and_its_services_are_there() -> None:
    for kind in KINDS:
        for word in (kind.name, kind.word, kind.plural, kind.name.lower() + "s", *kind.aliases):
            assert kind_named(word) is kind
        assert kind.query("get") is not None
        assert kind.command("delete") is not None
        assert ApiResourceKind.Value(ApiResourceKind.Name(kind.number)) == kind.number  # type: ignore[arg-type]
        assert kind.message().DESCRIPTOR.name == kind.name
    with pytest.raises(errors.InvalidRequestError, match="Did you mean agents"):
        kind_named("agentz")
