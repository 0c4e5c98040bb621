"""llama.cpp in a child process, asked over loopback: gigabytes of native code have no place in a worker.

`python -m agent_runner.adapters.models.local_server FILE` is the child. It says on standard output where it
listens, and ends when its standard input does, so it never outlives the worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

from agent_runner.errors import ModelError

CONTEXT_TOKENS = 8192
_START_SECONDS = 180.0
_IDLE_SECONDS = 900
"""After this the weights leave the memory; the next call loads them again."""


class LocalServer:
    """Starts the child when it is first needed, and again when it has died. For any thread.

    Args:
        weights: the model's file.
        log: where the child's messages go.
    """

    def __init__(self, weights: Path, log: Path) -> None:
        self._weights = weights
        self._log = log
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._address = ""
        self.key = secrets.token_urlsafe(24)
        """What the child asks its callers for: others on this machine may not use it."""

    def address(self) -> str:
        """The base URL of its OpenAI protocol; may take half a minute.

        Raises:
            ModelError: it does not start; the message says where its log is.
        """
        with self._lock:
            if self._child is None or self._child.poll() is not None:
                self._start()
            return self._address

    def stop(self) -> None:
        with self._lock:
            if self._child is None:
                return
            if self._child.stdin is not None:
                self._child.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(10)
            if self._child.poll() is None:
                self._child.kill()
                self._child.wait()
            if self._child.stdout is not None:
                self._child.stdout.close()
            self._child = None

    def check(self) -> None:
        """Look whether it could be started, which takes no time and no memory.

        Raises:
            ModelError: its runtime is not installed.
        """
        if find_spec("xllamacpp") is None:
            raise ModelError(
                "The model that runs here needs its runtime: pip install 'agent-runner-platform[local-model]'"
            )

    def _start(self) -> None:
        self.check()
        environment = {
            name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ
        }
        # The default lets threads spin, which collapses where others use the machine too.
        environment |= {"OMP_WAIT_POLICY": "passive", "AGENT_RUNNER_LOCAL_MODEL_KEY": self.key}
        self._log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "agent_runner.adapters.models.local_server", str(self._weights)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], _START_SECONDS)
        line = child.stdout.readline() if ready else b""
        try:
            self._address = json.loads(line)["address"]
        except (ValueError, KeyError, TypeError):
            child.kill()
            child.wait()
            raise ModelError(f"The model that runs here did not start; {self._log} says why.") from None
        self._child = child


def serve(weights: Path) -> None:
    """The child: load, say where, and answer until standard input ends."""
    import xllamacpp

    from agent_runner.adapters.models.local_template import fenced, stock_template

    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 1
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.chat_template = fenced(stock_template(weights))
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_Q8_0
    params.cache_ram_mib = 256
    params.sleep_idle_seconds = _IDLE_SECONDS
    params.api_keys = [os.environ["AGENT_RUNNER_LOCAL_MODEL_KEY"]]
    params.verbosity = 1
    threads = max(1, len(os.sched_getaffinity(0)))
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    # Native code prints where it likes; the answer to our parent has the only way there.
    told = os.dup(1)
    os.dup2(2, 1)
    server = xllamacpp.Server(params)
    os.write(told, json.dumps({"address": f"{server.listening_address}/v1"}).encode() + b"\n")
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
