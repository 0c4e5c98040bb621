"""The product under measurement: its processes, and a client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from agent_runner.client import AgentRunner
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED, ExecutionPhase
from ai.stigmer.commons.apiresource.enum_pb2 import ApiResourceOwnerScope

_LONGEST_TURN = 600.0

PRODUCT = "agent_runner"
"""The module that is `agent-runner`."""

ROLES = {"stack": "control plane + runner", "server": "control plane", "worker": "runner"}
"""What the children do, by their names."""


class TurnFailedError(Exception):
    """An execution did not end as COMPLETED."""


class Processes:
    """Child processes of one product, ended together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.address = ""
        self.temporal = ""
        self.temporal_pid: int | None = None
        """Of a Temporal that is no child of these processes."""
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def shape(self) -> str:
        """For people: one process or two."""
        return "one process" if "stack" in self.children else "two processes"

    def spawn(
        self, name: str, *arguments: str, program: str = PRODUCT, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Run a command of the product, or of another module that takes the same ones."""
        log = (self.folder / f"{name}.log").open("ab")
        known = {key: value for key, value in os.environ.items() if not key.startswith("AGENT_RUNNER_")}
        child = subprocess.Popen(
            [sys.executable, "-m", program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={
                **known,
                "AGENT_RUNNER_DATA_DIR": str(self.data),
                "AGENT_RUNNER_WEB_LISTEN": "127.0.0.1:0",
                **environment,
            },
            start_new_session=True,
        )
        log.close()
        self.children[name] = child
        return child

    def cpu_by_role(self) -> dict[str, float]:
        """Seconds of CPU so far: of control plane, runner and Temporal, as far as they are apart."""
        used = dict.fromkeys([ROLES.get(name, name) for name in self.children] + ["Temporal"], 0.0)
        for name, process in self._own():
            used[ROLES.get(name, name)] += _cpu(process)
            # A stack's only child in these measurements: nothing here runs in a sandbox.
            used["Temporal"] += sum(_cpu(child) for child in process.children(recursive=True))
        if self.temporal_pid is not None:
            used["Temporal"] += _cpu(psutil.Process(self.temporal_pid))
        return used

    def cpu_seconds(self) -> float:
        """CPU of all processes so far, Temporal included."""
        return sum(self.cpu_by_role().values())

    def memory_mib(self, name: str) -> float:
        return float(psutil.Process(self.children[name].pid).memory_info().rss / 2**20)

    def _own(self) -> Iterator[tuple[str, psutil.Process]]:
        for name, child in self.children.items():
            if child.poll() is None:
                yield name, psutil.Process(child.pid)

    def stop(self) -> None:
        for child in reversed(self.children.values()):
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
        for child in self.children.values():
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@dataclass(slots=True)
class Finished:
    """One execution as its watcher saw it.

    Attributes:
        seconds: from the create call to the terminal phase.
        first_event: from the create call to the first event of the agent.
    """

    execution: AgentExecution
    seconds: float
    first_event: float
    events: int


@contextlib.asynccontextmanager
async def client(processes: Processes) -> AsyncIterator[AgentRunner]:
    async with AgentRunner(processes.address, org="local") as runner:
        yield runner


async def make_agent(runner: AgentRunner, script: Path) -> str:
    """An agent that follows the script; returns its id."""
    agent = Agent(api_version="agentic.stigmer.ai/v1", kind="Agent")
    agent.metadata.name = f"bench {script.stem} {time.monotonic_ns()}"
    agent.metadata.org, agent.metadata.owner_scope = "local", ApiResourceOwnerScope.organization
    agent.spec.instructions = "Do what the script says."
    agent.spec.options.model.model_name = f"script:{script}"
    return str((await runner.resources.apply(agent)).metadata.id)


async def run_turn(runner: AgentRunner, agent_id: str) -> Finished:
    """Create, watch to the end, read the result.

    Raises:
        TurnFailedError: it did not complete, or took ten minutes.
    """
    try:
        async with asyncio.timeout(_LONGEST_TURN):
            return await _run_turn(runner, agent_id)
    except TimeoutError as error:
        raise TurnFailedError(f"no end after {_LONGEST_TURN:.0f} s") from error


async def _run_turn(runner: AgentRunner, agent_id: str) -> Finished:
    began = time.perf_counter()
    execution = await runner.executions.start("go", agent_id=agent_id)
    first, count = 0.0, 0
    async for event in runner.executions.watch(execution.metadata.id):
        count += 1
        if not first and event.WhichOneof("event") in ("message_delta", "tool_call_started"):
            first = time.perf_counter() - began
    seconds = time.perf_counter() - began
    final = await runner.executions.get(execution.metadata.id)
    if final.status.phase != EXECUTION_COMPLETED:
        raise TurnFailedError(f"{ExecutionPhase.Name(final.status.phase)}: {final.status.error}")
    return Finished(final, seconds, first, count)
