"""Everything a run needs, real but for the model: Temporal, services, gRPC, engine, sandbox, workers.

Run as a program it is a runner alone: `runner_stack.py TEMPORAL SERVER DIRECTORY`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from integration.fakes.servers import NativeServer
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowHandle

from agent_runner.adapters.agents.deepagents import DeepAgentsFactory
from agent_runner.adapters.checkpoints.sqlite import SqliteCheckpoints
from agent_runner.adapters.controlplane.file_tasks import GrpcFileTasks
from agent_runner.adapters.controlplane.resources import GrpcResourceReader
from agent_runner.adapters.models.resolver import DefaultModelResolver
from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.adapters.status.sinks import NegotiatingSinks
from agent_runner.adapters.status.spools import Spool
from agent_runner.adapters.temporal.connection import TemporalConnection
from agent_runner.adapters.temporal.managed import ManagedTemporal
from agent_runner.adapters.workflows.temporal import StarterSettings, TemporalWorkflowStarter
from agent_runner.bootstrap.runner import delivering
from agent_runner.client.channels import Channel
from agent_runner.domain.attempts import LIMITS, AttemptLimits
from agent_runner.domain.phases import is_terminal
from agent_runner.ports.workflows import workflow_id
from agent_runner.runner.attempts import Parts
from agent_runner.runner.ends import ServiceEnds
from agent_runner.runner.worker import ControlPlaneWorker, RunnerWorker, WorkerSettings
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.commons.apiresource.enum_pb2 import ApiResourceOwnerScope


@asynccontextmanager
async def parts(server: str, directory: Path) -> AsyncIterator[Parts]:
    channel = Channel(server)
    checkpoints = SqliteCheckpoints(directory / "checkpoints.db")
    await checkpoints.open()
    sandboxes = LocalProvider(directory / "sandboxes")
    spool = Spool(directory / "outbox")
    try:
        yield Parts(
            sinks=NegotiatingSinks(channel, spool=spool),
            reader=GrpcResourceReader(channel),
            sandboxes=sandboxes,
            models=DefaultModelResolver({}),
            agents=DeepAgentsFactory(checkpoints),
            checkpoints=checkpoints,
            keep_checkpoints=3,
            file_tasks=GrpcFileTasks(channel),
        )
    finally:
        await sandboxes.aclose()
        await spool.aclose()
        await checkpoints.aclose()
        await channel.aclose()


GATE = "until [ -e {0} ]; do sleep 0.05; done"
"""A command that goes on once the test has let it: `GATE.format("go")`."""
# However busy the machine is, what only has to end its step does.
PATIENT = WorkerSettings(grace=timedelta(minutes=5))


@dataclass
class Stack:
    temporal: ManagedTemporal
    connection: TemporalConnection
    client: Client
    server: NativeServer
    directory: Path
    _held: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def agent(self, script: str, **spec: object) -> Agent:
        path = self.directory / f"script-{len(list(self.directory.iterdir()))}.yaml"
        path.write_text(script)
        agent = Agent(api_version="agentic.stigmer.ai/v1", kind="Agent")
        agent.metadata.name = path.stem
        agent.metadata.owner_scope = ApiResourceOwnerScope.organization
        agent.spec.instructions = "Do what the script says."
        agent.spec.options.model.model_name = f"script:{path}"
        for name, value in spec.items():
            getattr(agent.spec, name).MergeFrom(value)
        return await self.server.services.agents.create(agent)

    async def rewrite(self, execution: AgentExecution, script: str) -> None:
        """From now on its model says something else."""
        agent = await self.server.services.agents.get(execution.spec.agent_id)
        path = Path(agent.spec.options.model.model_name.removeprefix("script:"))
        await asyncio.to_thread(path.write_text, script)

    async def create(
        self, agent: Agent, message: str = "hello", session: str = "", token: bytes = b""
    ) -> AgentExecution:
        execution = AgentExecution(api_version="agentic.stigmer.ai/v1", kind="AgentExecution")
        execution.metadata.SetInParent()
        execution.spec.agent_id = "" if session else agent.metadata.id
        execution.spec.session_id, execution.spec.message = session, message
        execution.spec.callback_token = token
        return await self.server.services.executions.create(execution)

    async def get(self, execution: AgentExecution) -> AgentExecution:
        return await self.server.services.executions.get(execution.metadata.id)

    async def ended(self, execution: AgentExecution) -> AgentExecution:
        """The execution once its phase is final."""
        async with asyncio.timeout(300):
            async for body in self.server.services.watches.subscribe(execution.metadata.id):
                seen = AgentExecution.FromString(body)
                if is_terminal(seen.status.phase):
                    return seen
        raise AssertionError("the subscription ended early")

    async def seen(self, execution: AgentExecution, what: str) -> None:
        """Until something with this text has been said or done."""
        async with asyncio.timeout(120):
            async for body in self.server.services.watches.subscribe(execution.metadata.id):
                if what in str(AgentExecution.FromString(body).status):
                    return
        raise AssertionError(f"never saw {what!r}")

    def let_go(self, execution: AgentExecution, gate: str = "go") -> None:
        """Let the command that waits at a gate of the session go on."""
        sessions = self.directory / "sandboxes" / "sessions"
        (sessions / execution.spec.session_id / "workspace" / gate).touch()

    async def stop_at_gate(self, worker: RunnerWorker, execution: AgentExecution, gate: str = "go") -> None:
        """Stop a worker of this process whose turn waits at a gate; it goes on when the turn knows."""
        stopping = asyncio.create_task(worker.stop())
        for _ in range(100):  # turns of this very loop, in which the turn hears of it
            await asyncio.sleep(0)
        self.let_go(execution, gate)
        await stopping

    def handle(self, execution: AgentExecution) -> WorkflowHandle[object, object]:
        return self.client.get_workflow_handle(workflow_id(execution.metadata.id))

    async def history(self, execution: AgentExecution) -> list[HistoryEvent]:
        return list((await self.handle(execution).fetch_history()).events)

    async def run_worker(self, settings: WorkerSettings | None = None) -> RunnerWorker:
        """A runner in this process; the test may stop it earlier."""
        made = await self._held.enter_async_context(parts(self.server.address, self.directory))
        worker = RunnerWorker(self.client, made, settings)
        await self._held.enter_async_context(worker)
        return worker

    async def spawn_worker(self, server: str = "") -> asyncio.subprocess.Process:
        """A runner in a process of its own, polling when this returns. `server`: else this stack's own."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__)),
            self.temporal.address,
            server or self.server.address,
            str(self.directory),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._held.push_async_callback(_kill, process)
        await said(process, "ready")
        return process


async def said(process: asyncio.subprocess.Process, word: str) -> None:
    """Until a runner in a process of its own has printed a line that is the word."""
    assert process.stdout is not None
    async with asyncio.timeout(120):
        async for line in process.stdout:
            if line.decode().strip() == word:
                return
    raise AssertionError(f"the runner ended without {word!r}")


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


@asynccontextmanager
async def stack(
    directory: Path, settings: StarterSettings | None = None, limits: AttemptLimits = LIMITS
) -> AsyncIterator[Stack]:
    """Temporal, control plane and its worker; runners are started by the test."""
    async with ManagedTemporal(directory / "temporal") as temporal:
        connection = TemporalConnection.managed(temporal.address)
        client = await connection.wait()
        starter = TemporalWorkflowStarter(connection, settings, patience=timedelta(minutes=2))
        server = NativeServer(starter, limits)
        await server.start()
        made = Stack(temporal, connection, client, server, directory)
        try:
            async with ControlPlaneWorker(client, ServiceEnds(server.services)), made._held:
                yield made
        finally:
            await server.services.aclose()
            await server.stop()


async def _run_alone(temporal: str, server: str, directory: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = await TemporalConnection.managed(temporal).wait()
    async with parts(server, directory) as made, delivering(made.sinks), RunnerWorker(client, made, PATIENT):
        print("ready", flush=True)
        await stop.wait()
        print("stopping", flush=True)


if __name__ == "__main__":
    asyncio.run(_run_alone(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
    sys.stdout.flush()
    os._exit(0)
