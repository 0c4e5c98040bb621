"""The product under fire: Temporal, a control plane and workers as processes, proxies between them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil

from agent_runner.adapters.machine.ports import free_port
from agent_runner.adapters.temporal.managed import ManagedTemporal
from agent_runner.client import AgentRunner
from agent_runner.errors import AgentRunnerError
from agent_runner.processes import Command
from bench.product import Processes
from chaos.proxies import FaultProxy

_READY = timedelta(minutes=5)


class PlainTemporal(ManagedTemporal):
    """One which pushes no cancels to workers, as those of others do not; they learn of them by heartbeats."""

    def _command(self) -> Command:
        command = super()._command()
        pushing = [value for value in command.argv if "WorkerCommand" in value]
        assert pushing, "the managed server does not push cancels either"
        argv = list(command.argv)
        for value in pushing:
            at = argv.index(value)
            del argv[at - 1 : at + 1]
        return replace(command, argv=argv)


class Cluster:
    """One host: all workers share its data directory, where checkpoints and sandboxes are.

    Every line between two processes goes through a proxy of its own, so that one worker can be cut
    off while the others work: `server/temporal`, `worker-1/server`, `worker-1/temporal`, …, and
    `watchers/server` and `watchers/web`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        workers: int,
        concurrency: int = 20,
        heartbeat: float = 5.0,
        pushes_cancels: bool = True,
    ) -> None:
        self.processes = Processes(folder)
        self.temporal = (ManagedTemporal if pushes_cancels else PlainTemporal)(folder / "temporal")
        self.proxies: dict[str, FaultProxy] = {}
        self.workers = [f"worker-{number}" for number in range(1, workers + 1)]
        self._concurrency = concurrency
        self._heartbeat = heartbeat
        self._web = _free_address()

    @property
    def address(self) -> str:
        """The control plane's own, without a proxy."""
        return self.processes.address

    @property
    def data(self) -> Path:
        return self.processes.data

    async def start(self) -> None:
        await self.temporal.start()
        self.processes.address, self.processes.temporal = _free_address(), self.temporal.address
        lines = [("server/temporal", self.temporal.address)]
        lines += [("watchers/server", self.address), ("watchers/web", self._web)]
        for worker in self.workers:
            lines += [(f"{worker}/server", self.address), (f"{worker}/temporal", self.temporal.address)]
        for name, target in lines:
            self.proxies[name] = FaultProxy(target)
            await self.proxies[name].start()
        self.run("server")
        await self.serves()
        for worker in self.workers:
            self.run(worker)

    async def stop(self) -> None:
        for proxy in self.proxies.values():
            proxy.mend()
        for child in self.processes.children.values():
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGCONT)
        await asyncio.to_thread(self.processes.stop)
        for proxy in self.proxies.values():
            await proxy.stop()
        await self.temporal.stop()

    def run(self, name: str) -> None:
        """Start the server or a worker, after `kill` again."""
        environment = {
            "TEMPORAL_ADDRESS": self.proxies[f"{name}/temporal"].address,
            "AGENT_RUNNER_HEARTBEAT_TIMEOUT_SECONDS": str(self._heartbeat),
        }
        if name == "server":
            environment["AGENT_RUNNER_WEB_LISTEN"] = self._web
            self.processes.spawn(name, "server", "--listen", self.address, **environment)
        else:
            server = self.proxies[f"{name}/server"].address
            options = ("--address", server, "--concurrency", str(self._concurrency))
            self.processes.spawn(name, "worker", *options, **environment)

    def pid(self, name: str) -> int:
        pid = self.temporal.pid if name == "temporal" else self.processes.children[name].pid
        return pid or 0

    async def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a process and wait until it is gone. Temporal comes back by itself."""
        if name == "temporal":
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid(name), number)
            return
        child = self.processes.children[name]
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)
        await asyncio.to_thread(child.wait)

    async def serves(self) -> None:
        """Return when the control plane answers.

        Raises:
            TimeoutError: it does not.
            SystemExit: it ended by itself; with its log.
        """
        server = self.processes.children["server"]
        async with asyncio.timeout(_READY.total_seconds()), AgentRunner(self.address, org="local") as runner:
            while True:
                try:
                    await runner.server_info()
                    return
                except AgentRunnerError:
                    if server.poll() is not None:
                        raise SystemExit((self.processes.folder / "server.log").read_text()) from None
                    await asyncio.sleep(0.1)

    def cpu_seconds(self) -> float:
        """CPU of all processes so far, without those a sandbox runs."""
        pids = [self.pid(name) for name in ("server", *self.workers, "temporal")]
        return float(sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids))

    def memory_mib(self, name: str) -> float:
        return float(psutil.Process(self.pid(name)).memory_info().rss / 2**20)


@contextlib.asynccontextmanager
async def cluster(
    folder: Path,
    *,
    workers: int,
    concurrency: int = 20,
    heartbeat: float = 5.0,
    pushes_cancels: bool = True,
) -> AsyncIterator[Cluster]:
    made = Cluster(
        folder,
        workers=workers,
        concurrency=concurrency,
        heartbeat=heartbeat,
        pushes_cancels=pushes_cancels,
    )
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


def _free_address() -> str:
    return f"127.0.0.1:{free_port()}"
