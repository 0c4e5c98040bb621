"""What a process must not have loaded while it idles: its memory and the time of its start depend on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

# As the command does, but for what it says in the end.
PROGRAM = """
import json, os, sys
from agent_runner import bootstrap, settings
assert bootstrap.{service}(settings.load()) == 0
sys.stdout.write(json.dumps(sorted(sys.modules)))
sys.stdout.flush()
os._exit(0)  # a process with Temporal's library in it can abort in the interpreter's exit
"""
READY = {"run_server": "control plane is ready", "run_worker": "runner is ready"}

ENGINES = {"langchain", "langchain_core", "langgraph", "deepagents", "langsmith"}
PROVIDERS = {"openai", "anthropic", "ollama", "google.genai", "tiktoken", "transformers", "numpy"}
SELDOM = {
    "mcp",
    "jsonschema",
    "daytona",
    "pymongo",
    "redis",
    "prometheus_client",
    "ruamel",
    "rich",
    "pygments",
}
SERVING = {"uvicorn", "starlette", "cryptography", "obstore", "agent_runner.console.application"}
NEVER = {
    "run_server": ENGINES | PROVIDERS | SELDOM | SERVING | {"pydantic", "httpx", "requests"},
    "run_worker": PROVIDERS | SELDOM | SERVING | {"protovalidate", "agent_runner.services.container"},
}


def loaded(service: str, home: Path) -> Collection[str]:
    """The modules of a process that served, with no Temporal to talk to, and was told to stop."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "AGENT_RUNNER_DATA_DIR": str(home / "data"),
        "AGENT_RUNNER_LISTEN": "127.0.0.1:0",
        "AGENT_RUNNER_WEB_LISTEN": "127.0.0.1:0",
        "TEMPORAL_ADDRESS": "127.0.0.1:1",
    }
    program = [sys.executable, "-c", PROGRAM.format(service=service)]
    with subprocess.Popen(
        program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if READY[service] in line:
                break
        process.terminate()
        modules, rest = process.communicate(timeout=300)
    assert modules, said + rest
    return set(json.loads(modules))


@pytest.mark.parametrize("service", NEVER)
def test_a_process_loads_what_it_works_with_alone(service: str, tmp_path: Path) -> None:
    modules = loaded(service, tmp_path)

    assert "temporalio.worker" in modules
    assert sorted(modules & NEVER[service]) == []
