"""An outage with all parts in processes of their own: what a runner has said outlives it, without secrets."""

from __future__ import annotations

import secrets
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from integration.fakes.outboxes import completed, emptied, files_in, written

from agent_runner.client import AgentRunner
from agent_runner.domain.masking import MASK
from agent_runner.domain.status import fold
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED
from ai.stigmer.commons.apiresource.enum_pb2 import ApiResourceOwnerScope
from chaos.clusters import Cluster

WORDS = " ".join(f"word{n}" for n in range(600))


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path, workers=1)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def teller(client: AgentRunner, folder: Path, text: str) -> Agent:
    script = folder / "tells.yaml"
    script.write_text(f'turns: [{{steps: [{{text: "{text}", delay_ms: 10, chunk_tokens: 1}}]}}]')
    agent = Agent(api_version="agentic.stigmer.ai/v1", kind="Agent")
    agent.metadata.name, agent.metadata.org = "teller", "local"
    agent.metadata.owner_scope = ApiResourceOwnerScope.organization
    agent.spec.instructions = "Tell the story."
    agent.spec.options.model.model_name = f"script:{script}"
    return await client.apply(agent)


async def until_said(client: AgentRunner, execution_id: str, text: str) -> None:
    said = ""
    async for event in client.watch(execution_id):
        said += event.message_delta.text
        if text in said:
            return


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_what_was_said_in_an_outage_outlives_its_runner_without_its_secrets(
    cluster: Cluster, tmp_path: Path, how: signal.Signals
) -> None:
    outbox = cluster.data / "outbox"
    secret = f"canary-{secrets.token_hex(8)}"
    async with AgentRunner(cluster.address, org="local") as client:
        await teller(client, tmp_path, f"{WORDS} key={secret} fin.")
        execution_id = (await client.start("hello", agent="teller", secrets={"TOKEN": secret})).metadata.id
        await until_said(client, execution_id, "word3 ")
        await cluster.kill("server")
        await written(outbox, completed)
        [on_disk] = [path.read_bytes() for path in files_in(outbox)]
        await cluster.kill("worker-1", how)
        cluster.run("server")
        await cluster.serves()
        cluster.run("worker-1")

        log = [event async for event in client.watch(execution_id)]
        status = (await client.executions.get(execution_id)).status

    assert secret.encode() not in on_disk
    assert status.phase == EXECUTION_COMPLETED, status.error
    assert [m.content.strip() for m in status.messages] == ["hello", f"{WORDS} key={MASK} fin."]
    assert [event.seq for event in log] == list(range(1, len(log) + 1))
    assert fold(AgentExecutionStatus(), log).messages == status.messages
    assert {event.attempt for event in log} == {0, 1}
    await emptied(outbox)
