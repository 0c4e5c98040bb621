"""The product under measurement: its processes, and a client."""

from __future__ import annotations

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

from agent_runner.bootstrap.data import read_state
from agent_runner.client import AgentRunner
from agent_runner.domain.phases import is_terminal
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED, ExecutionPhase
from ai.stigmer.commons.apiresource.enum_pb2 import ApiResourceOwnerScope

_READY_WITHIN = 60.0


class Processes:
    """Child processes of one product, ended together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.address = ""
        self.temporal = ""
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def spawn(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{name}.log").open("ab")
        known = {key: value for key, value in os.environ.items() if not key.startswith("AGENT_RUNNER_")}
        child = subprocess.Popen(
            [sys.executable, "-m", "agent_runner", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**known, "AGENT_RUNNER_DATA_DIR": str(self.data), **environment},
            start_new_session=True,
        )
        self.children[name] = child
        return child

    def cpu_seconds(self) -> float:
        """CPU of all processes so far, those which Temporal runs in included."""
        return sum(sum(process.cpu_times()[:2]) for process in self.tree())

    def memory_mib(self, name: str) -> float:
        return float(psutil.Process(self.children[name].pid).memory_info().rss / 2**20)

    def tree(self) -> Iterator[psutil.Process]:
        for child in self.children.values():
            if child.poll() is None:
                process = psutil.Process(child.pid)
                yield process
                yield from process.children(recursive=True)

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


@contextlib.contextmanager
def one_process(folder: Path) -> Iterator[Processes]:
    """`agent-runner up`: control plane and runner in one process, Temporal its child."""
    processes = Processes(folder)
    child = processes.spawn("stack", "up", "--port", "0", "--quiet")
    try:
        deadline = time.monotonic() + _READY_WITHIN
        while (state := read_state(processes.data / "stack.json")) is None:
            if child.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((folder / "stack.log").read_text())
            time.sleep(0.005)
        processes.address, processes.temporal = state["address"], state["temporal"]
        yield processes
    finally:
        processes.stop()


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
    made = await runner.resources.apply(agent)
    return str(made.metadata.id)  # type: ignore[attr-defined]


async def run_turn(runner: AgentRunner, agent_id: str) -> Finished:
    """Create, watch to the end, read the result.

    Raises:
        SystemExit: it did not complete; a measurement of failures would mean nothing.
    """
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
        raise SystemExit(f"{ExecutionPhase.Name(final.status.phase)}: {final.status.error}")
    assert is_terminal(final.status.phase)
    return Finished(final, seconds, first, count)
