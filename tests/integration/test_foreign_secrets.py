"""A runner of the Stigmer API masks nothing: what it reports of secrets is stored and shown masked."""

from __future__ import annotations

import gc
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from integration.test_secrets_canary import content, found_in
from unit.services.conftest import World
from unit.services.fakes.resources import agent, environment, execution, instance, mcp_server, session

from agent_runner.adapters.secrets.keyring import Keyring, new_key
from agent_runner.adapters.store.sqlite import SqliteDatabase, SqliteEventLog, SqliteResourceStore
from agent_runner.controlplane.server import ControlPlane
from agent_runner.domain.encodings import forms
from agent_runner.domain.masking import MASK, Masker
from agent_runner.runner.ends import ServiceEnds
from agent_runner.services.container import Services, build_services
from ai.stigmer.agentic.agentexecution.v1 import command_pb2_grpc
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.command_pb2 import AgentExecutionUpdateStatusInput
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_COMPLETED,
    EXECUTION_FAILED,
    EXECUTION_IN_PROGRESS,
    MESSAGE_AI,
)

LAYERS = ("agent", "environment", "runtime", "server")


@pytest.fixture
def canaries() -> dict[str, str]:
    """A secret of each layer."""
    return {layer: f"cnry/{secrets.token_hex(8)}+&'={layer}" for layer in LAYERS}


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[Services]:
    world = World()
    async with SqliteDatabase(tmp_path / "control-plane.db") as database:
        made = build_services(
            SqliteResourceStore(database),
            SqliteEventLog(database),
            world.announcer,
            world.workflows,
            world.artifacts,
            secrets=Keyring.parse(f"k1:{new_key()}"),
        )
        yield made
        await made.aclose()


@pytest.fixture
async def foreign(services: Services) -> AsyncIterator[Any]:
    """The command stub of executions, as a runner of another product uses it."""
    server = ControlPlane(
        services, address="127.0.0.1:0", api_key=None, version="1.2.3", temporal_address="127.0.0.1:7233"
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as channel:
        yield command_pb2_grpc.AgentExecutionCommandControllerStub(channel)
    await server.stop(0)


def keep(data: Any, name: str, value: str) -> None:
    data[name].value, data[name].is_secret = value, True


async def running(services: Services, canaries: dict[str, str]) -> AgentExecution:
    server = mcp_server()
    server.metadata.org = "acme"
    keep(server.spec.env_spec.data, "SERVER_KEY", canaries["server"])
    server = await services.mcp_servers.create(server)
    wanted = agent()
    keep(wanted.spec.env_spec.data, "AGENT_KEY", canaries["agent"])
    wanted.spec.mcp_servers.add(name=server.metadata.slug)
    helper = await services.agents.create(wanted)
    layer = environment()
    keep(layer.spec.data, "ENV_KEY", canaries["environment"])
    layer = await services.environments.create(layer)
    own = instance(helper.metadata.id)
    own.spec.environment_refs.add(slug="gone-since-then")
    own.spec.environment_refs.add(slug=layer.metadata.slug)
    talk = await services.sessions.create(session((await services.agent_instances.create(own)).metadata.id))
    request = execution(session_id=talk.metadata.id)
    keep(request.spec.runtime_env, "RUN_KEY", canaries["runtime"])
    return await services.executions.create(request)


def leak(text: str) -> AgentExecutionStatus:
    """A status that says the text wherever a runner can say something."""
    status = AgentExecutionStatus(phase=EXECUTION_IN_PROGRESS)
    message = status.messages.add(type=MESSAGE_AI, content=f"I know {text}, but that is all.")
    for call in (
        status.tool_calls.add(id="c1", name="execute"),
        message.tool_calls.add(id="c1", name="execute"),
    ):
        call.args.update({"command": f"echo {text}", text: [text, {"deep": text}]})
        call.result, call.error = f"it is {text}", f"no {text}"
    sub_agent = status.sub_agent_executions.add(
        id="s1", name="researcher", input=text, output=text, error=text
    )
    sub_agent.messages.add(type=MESSAGE_AI, content=f"{text}!")
    status.todos["t1"].content = text
    return status


async def update(foreign: Any, run: AgentExecution, status: AgentExecutionStatus) -> AgentExecution:
    request = AgentExecutionUpdateStatusInput(execution_id=run.metadata.id, status=status)
    answer: AgentExecution = await foreign.updateStatus(request)
    return answer


def stored(directory: Path, canary: str) -> list[str]:
    """Where in the database it is found; in a copy, since it is open in this very process."""
    copy = Path(tempfile.mkdtemp(dir=directory))
    for path in directory.glob("control-plane.db*"):
        shutil.copy(path, copy)
    paths = sorted(copy.iterdir(), reverse=True)  # the database last: reading it merges the others
    return [path.name for path in paths for part in content(path) if found_in(part, canary)]


@pytest.mark.parametrize("layer", LAYERS)
async def test_no_shape_of_a_secret_a_foreign_runner_reports_is_stored_or_shown(
    services: Services, foreign: Any, canaries: dict[str, str], layer: str, tmp_path: Path
) -> None:
    run = await running(services, canaries)
    canary = canaries[layer]
    for shape in forms(canary):
        answer = await update(foreign, run, leak(f"public-4711 {shape}"))
        assert not found_in(answer.SerializeToString(), canary), shape
    ended = AgentExecutionStatus(phase=EXECUTION_FAILED, error=f"public-4711 {canary} is wrong")
    answer = await update(foreign, run, ended)

    assert answer.status.error == f"public-4711 {MASK} is wrong"
    assert answer.status.messages[0].content == f"I know public-4711 {MASK}, but that is all."
    assert answer.status.tool_calls[0].args["command"] == f"echo public-4711 {MASK}"
    assert stored(tmp_path, canary) == []
    assert stored(tmp_path, "public-4711")  # or finding nothing would prove nothing


async def test_a_secret_that_is_being_said_is_not_shown_by_and_by(
    services: Services, foreign: Any, canaries: dict[str, str], tmp_path: Path
) -> None:
    run, canary = await running(services, canaries), canaries["runtime"]
    text = f"The key is {canary}"
    for end in range(1, len(text)):
        status = AgentExecutionStatus(phase=EXECUTION_IN_PROGRESS)
        status.messages.add(type=MESSAGE_AI, content=text[:end])
        answer = await update(foreign, run, status)
        assert "The key is ".startswith(answer.status.messages[0].content)
    whole = AgentExecutionStatus(phase=EXECUTION_COMPLETED)
    whole.messages.add(type=MESSAGE_AI, content=f"{text}.")

    answer = await update(foreign, run, whole)

    assert answer.status.messages[0].content == f"The key is {MASK}."
    assert stored(tmp_path, canary[:12]) == []


async def test_why_a_foreign_runner_failed_is_masked_too(
    services: Services, canaries: dict[str, str]
) -> None:
    run = await running(services, canaries)
    ended = AgentExecutionStatus(phase=EXECUTION_FAILED, error=f"401 for {canaries['agent']}")

    await ServiceEnds(services).end(run.metadata.id, ended)

    assert (await services.executions.get(run.metadata.id)).status.error == f"401 for {MASK}"


async def test_what_a_foreign_runner_says_after_the_end_is_masked_and_keeps_no_secret_in_memory(
    services: Services, foreign: Any, canaries: dict[str, str]
) -> None:
    run = await running(services, canaries)
    canary = canaries["agent"]

    def maskers() -> list[Masker]:
        gc.collect()
        found = (thing for thing in gc.get_objects() if isinstance(thing, Masker))
        return [masker for masker in found if masker.text(canary) != canary]

    await update(foreign, run, leak(canary))
    assert maskers()
    await update(foreign, run, AgentExecutionStatus(phase=EXECUTION_COMPLETED))
    answer = await update(foreign, run, leak(canary))
    assert not found_in(answer.SerializeToString(), canary)
    assert not maskers()
