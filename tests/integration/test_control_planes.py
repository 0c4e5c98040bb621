"""Two control planes on one MongoDB and Redis, each a process of its own, as users run them."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from contract.servers import mongo_server, redis_server

from agent_runner.adapters.machine.ports import free_port
from agent_runner.adapters.temporal.managed import ManagedTemporal
from agent_runner.client import AgentRunner
from agent_runner.domain.masking import MASK
from agent_runner.domain.status import fold
from agent_runner.errors import AgentRunnerError
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.execution_service_pb2 import WatchExecutionRequest, WatchExecutionResponse
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED
from ai.stigmer.commons.apiresource.enum_pb2 import ApiResourceOwnerScope
from bench.product import Processes

ROUNDS = 8
WATCH = "/agent_runner.v1.ExecutionService/WatchExecution"


@pytest.fixture(scope="module")
def shared() -> Iterator[dict[str, str]]:
    """Settings of the servers both control planes use."""
    with mongo_server() as mongo, redis_server() as redis:
        yield {
            "AGENT_RUNNER_DATABASE": f"{mongo}/test_{uuid.uuid4().hex}",
            "AGENT_RUNNER_ANNOUNCEMENTS": redis,
            "AGENT_RUNNER_ENCRYPTION_KEYS": "k1:" + base64.b64encode(bytes(range(32))).decode(),
        }


@dataclass(frozen=True, slots=True)
class Pair:
    """Addresses and logs of two control planes; the one runner calls the first."""

    one: str
    other: str
    web: str
    logs: tuple[Path, ...]


@pytest.fixture
async def pair(tmp_path: Path, shared: dict[str, str]) -> AsyncIterator[Pair]:
    temporal, processes = ManagedTemporal(tmp_path / "temporal"), Processes(tmp_path)
    await temporal.start()
    settings = {
        **shared,
        "TEMPORAL_ADDRESS": temporal.address,
        "AGENT_RUNNER_ARTIFACT_STORE": (tmp_path / "artifacts").as_uri(),
    }
    addresses, web = {name: free_address() for name in ("one", "other")}, free_address()
    try:
        for name, address in addresses.items():
            own = {"AGENT_RUNNER_DATA_DIR": str(tmp_path / name)}
            if name == "one":
                own["AGENT_RUNNER_WEB_LISTEN"] = web
            processes.spawn(name, "server", "--listen", address, **settings, **own)
        for address in addresses.values():
            await serves(address)
        processes.spawn("worker", "worker", "--address", addresses["one"], TEMPORAL_ADDRESS=temporal.address)
        yield Pair(**addresses, web=web, logs=tuple(tmp_path / f"{name}.log" for name in addresses))
    finally:
        await asyncio.to_thread(processes.stop)
        await temporal.stop()


def free_address() -> str:
    return f"127.0.0.1:{free_port()}"


async def serves(address: str) -> None:
    async with asyncio.timeout(300), AgentRunner(address, org="local") as runner:
        while True:
            try:
                await runner.server_info()
                return
            except AgentRunnerError:
                await asyncio.sleep(0.1)


async def teller(client: AgentRunner, folder: Path) -> None:
    script = folder / "tells.yaml"
    script.write_text(
        'turns: [{steps: [{text: "It begins. key=canary-in-a-mine It ends.", chunk_tokens: 2}]}]'
    )
    agent = Agent(api_version="agentic.stigmer.ai/v1", kind="Agent")
    agent.metadata.name, agent.metadata.org = "teller", "local"
    agent.metadata.owner_scope = ApiResourceOwnerScope.organization
    agent.spec.instructions = "Tell the story."
    agent.spec.options.model.model_name = f"script:{script}"
    await client.apply(agent)


async def test_watchers_at_one_see_at_once_what_another_one_took(pair: Pair, tmp_path: Path) -> None:
    async with (
        AgentRunner(pair.one, org="local") as one,
        AgentRunner(pair.other, org="local") as other,
        asyncio.timeout(550),
    ):
        await teller(other, tmp_path)
        waited = 0
        for _ in range(ROUNDS):
            started = await other.start("hello", agent="teller", secrets={"TOKEN": "canary-in-a-mine"})
            execution_id = started.metadata.id
            # Watched at both, while what happens is appended at `one`, where the runner reports.
            (seen, beats), (seen_here, _) = await asyncio.gather(
                watched(other, execution_id), watched(one, execution_id)
            )
            waited += beats > 0
            status = (await other.executions.get(execution_id)).status

            assert status.phase == EXECUTION_COMPLETED, status.error
            assert seen == seen_here
            assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
            assert fold(AgentExecutionStatus(), seen).messages == status.messages
            assert status.messages[-1].content == f"It begins. key={MASK} It ends."

        # Without announcements a heartbeat would find out each time; on a slow machine a few may beat.
        assert waited <= ROUNDS // 2
        info = await other.server_info()
        assert (info.database, info.database_problem) == ("mongodb", "")
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://{pair.web}/readyz")).json() == {"ready": True}
    assert "announcements are away" not in "".join(path.read_text() for path in pair.logs)


async def watched(client: AgentRunner, execution_id: str) -> tuple[list[ExecutionEvent], int]:
    """All events, and how many heartbeats came before the last."""
    events: list[ExecutionEvent] = []
    beats = 0
    request = WatchExecutionRequest(execution_id=execution_id)
    answers = client._channel.stream(WATCH, request, WatchExecutionResponse, silence=timedelta(minutes=5))
    async with aclosing(answers):  # type: ignore[type-var]
        async for answer in answers:
            beats += not answer.events
            events += answer.events
    return events, beats
