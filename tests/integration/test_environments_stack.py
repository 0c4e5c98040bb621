"""Variables on the real stack: what a script in the sandbox gets, who may see it, new keys."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.fakes.homes import Home, home_with_stack

from agent_runner.adapters.controlplane.environments import GrpcEnvironmentResolver
from agent_runner.client import AgentRunner
from agent_runner.client.channels import Channel
from agent_runner.domain.masking import MASK
from agent_runner.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
)
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED, EXECUTION_FAILED
from ai.stigmer.agentic.environment.v1.api_pb2 import Environment
from ai.stigmer.commons.apiresource.enum_pb2 import ApiResourceOwnerScope

MANIFESTS = """
apiVersion: agentic.stigmer.ai/v1
kind: Environment
metadata: {name: base}
spec:
  data:
    SHARED: {value: from base}
    PROXY: {value: "{{unset}}"}
    TOKEN: {value: s3cret-of-base, isSecret: true}
---
apiVersion: agentic.stigmer.ai/v1
kind: Environment
metadata: {name: prod}
spec:
  data:
    SHARED: {value: from prod}
---
apiVersion: agentic.stigmer.ai/v1
kind: Agent
metadata: {name: layered}
spec:
  instructions: Print the variables you are given.
  options: {model: {modelName: MODEL}}
  envSpec:
    data:
      SHARED: {value: from the agent}
      OWN: {value: of the agent}
      PROXY: {value: "http://proxy"}
      REGION: {value: ""}
      TOKEN: {value: "", isSecret: true}
---
apiVersion: agentic.stigmer.ai/v1
kind: AgentInstance
metadata: {name: layered-prod}
spec:
  agentId: layered
  environmentRefs: [base, prod]
---
apiVersion: agentic.stigmer.ai/v1
kind: Session
metadata: {name: chat}
spec:
  agentInstanceId: layered-prod
"""
PRINTS = (
    'for n in SHARED OWN PROXY REGION ONCE; do echo "$n=${!n-unset}"; done; '
    'test "$TOKEN" = s3cret-of-base && echo the token is right; env | grep -c AGENT_RUNNER'
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with home_with_stack(tmp_path_factory.mktemp("layers")) as home:
        call = {"name": "execute", "args": {"command": PRINTS}}
        model = home.script("prints", [{"calls": [call]}, "Printed."])
        manifest = home.data.parent / "layers.yaml"
        manifest.write_text(MANIFESTS.replace("MODEL", model))
        home.run("apply", "-f", str(manifest))
        yield home


async def run(home: Home, **variables: str) -> AgentExecution:
    async with AgentRunner(home.address) as client:
        sessions: list[Any] = [s async for s in client.list("sessions")]
        return await client.run("print them", session=sessions[-1].metadata.id, env=variables)


async def test_a_script_in_the_sandbox_gets_the_merged_variables_and_none_of_the_worker(
    home: Home,
) -> None:
    done = await run(home, ONCE="for this run", REGION="eu")

    assert done.status.phase == EXECUTION_COMPLETED, done.status.error
    assert done.status.tool_calls[0].result.splitlines()[:7] == [
        "SHARED=from prod",
        "OWN=of the agent",
        "PROXY=unset",
        "REGION=eu",
        "ONCE=for this run",
        "the token is right",
        "0",
    ]


async def test_a_run_without_a_required_variable_fails_at_once_and_names_it(home: Home) -> None:
    done = await run(home)

    assert done.status.phase == EXECUTION_FAILED
    assert "needs a value for REGION" in done.status.error
    assert not done.status.tool_calls


async def test_a_secret_in_the_message_of_a_run_that_cannot_begin_is_masked(home: Home) -> None:
    async with AgentRunner(home.address) as client:
        sessions: list[Any] = [s async for s in client.list("sessions")]
        done = await client.run("use s3cret-of-base", session=sessions[-1].metadata.id)
        log = [event async for event in client.watch(done.metadata.id)]

    assert [message.content for message in done.status.messages] == [f"use {MASK}"]
    assert "s3cret" not in str(log)


def test_env_explain_shows_where_each_value_is_from(home: Home) -> None:
    session = json.loads(home.run("get", "sessions", "-o", "json"))
    items = session["items"] if isinstance(session, dict) else session
    chat = next(s for s in items if s["metadata"]["name"] == "chat")["metadata"]["id"]

    said = home.run("env", "explain", "--session", chat, code=1)

    rows = [line.split("   ") for line in said.splitlines()]
    table = {row[0].strip(): [cell.strip() for cell in row[1:] if cell.strip()] for row in rows}
    assert table["SHARED"] == ["from prod", "environment prod", "agent, environment base"]
    assert table["PROXY"] == ["(removed)", "environment base", "agent"]
    assert table["TOKEN"] == [MASK, "environment base", "-"]
    assert table["REGION"] == ["(missing)", "-", "-"]
    assert "s3cret" not in said
    assert "To be set by an environment or with each run: REGION." in said


def test_no_way_of_reading_shows_a_secret(home: Home) -> None:
    for arguments in (
        ("get", "environments", "-o", "json"),
        ("get", "environment", "base", "-o", "yaml"),
        ("describe", "environment", "base"),
        ("get", "contexts", "-o", "json"),
    ):
        said = home.run(*arguments)
        assert "s3cret-of-base" not in said
        assert "v1.k" not in said


async def test_wrong_variables_are_refused_by_name(home: Home) -> None:
    environment = Environment(api_version="agentic.stigmer.ai/v1", kind="Environment")
    environment.metadata.name, environment.metadata.org = "wrong", "local"
    environment.metadata.owner_scope = ApiResourceOwnerScope.organization
    environment.spec.data["NOT-A-NAME"].value = "x"
    environment.spec.data["BIG"].value, environment.spec.data["BIG"].is_secret = "s" * (1 << 20), True
    async with AgentRunner(home.address) as client:
        with pytest.raises(InvalidRequestError) as caught:
            await client.apply(environment)
        agent: Any = await client.get("agent", "layered")
        changed = Agent()
        changed.CopyFrom(agent)
        changed.spec.env_spec.data["TOKEN"].value = MASK
        with pytest.raises(InvalidRequestError, match="none is stored"):
            await client.apply(changed)

    assert {v.field for v in caught.value.violations} >= {
        'spec.data["NOT-A-NAME"]',
        'spec.data["BIG"]',
    }


async def test_keys_are_rotated_and_the_old_one_can_then_be_dropped(home: Home) -> None:
    keys = home.data / "encryption-keys"
    old = keys.read_text()
    new = f"k2:{base64.b64encode(os.urandom(32)).decode()}\n"
    home.run("down")
    keys.write_text(new + old)
    home.run("up", "--detach", "--port", "0")

    assert "encrypted anew with key k2." in home.run("admin", "rotate-keys")
    assert "0 secrets encrypted anew" in home.run("admin", "rotate-keys")

    home.run("down")
    keys.write_text(new)
    home.run("up", "--detach", "--port", "0")
    done = await run(home, REGION="eu")
    assert "the token is right" in done.status.tool_calls[0].result
    assert stat_mode(keys) == 0o600


async def test_variables_are_given_to_the_holder_of_a_running_execution_alone(home: Home) -> None:
    done = await run(home, REGION="eu")
    channel = Channel(home.address)
    try:
        resolver = GrpcEnvironmentResolver(channel)
        with pytest.raises(FailedPreconditionError, match="has ended"):
            await resolver.resolve(done.metadata.id, done.status.run.attempt, "")
        with pytest.raises(ConflictError, match="attempt 7 must stop"):
            await resolver.resolve(done.metadata.id, 7, "")
        with pytest.raises(NotFoundError):
            await resolver.resolve("aex-00000000000000000000000000", 1, "")
    finally:
        await channel.aclose()


def stat_mode(path: Path) -> int:
    return path.stat().st_mode & 0o777
