from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from unit.cli.conftest import Command

from agent_runner import settings
from agent_runner.cli import _connection
from agent_runner.errors import SettingsError


def test_variables_and_their_order_are_those_of_the_settings() -> None:
    for name, variables in _connection.NAMES.items():
        assert variables == settings.known_settings()[name].variables


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"AGENT_RUNNER_ADDRESS": "a:1", "STIGMER_BACKEND_ENDPOINT": "b:1", "AGENT_RUNNER_ORG": "o"},
        {"STIGMER_API_KEY": "k", "STIGMER_DATA_DIR": "~/x"},
        {"AGENT_RUNNER_API_KEY_FILE": "key"},
        {"AGENT_RUNNER_API_KEY_FILE": "key", "AGENT_RUNNER_API_KEY": ""},
        {"AGENT_RUNNER_DATA_DIR": "", "AGENT_RUNNER_ADDRESS": "", "AGENT_RUNNER_ORG": ""},
        {"AGENT_RUNNER_DATA_DIR": "", "STIGMER_DATA_DIR": "~/x"},
        {"XDG_DATA_HOME": "/data"},
    ],
)
@pytest.mark.parametrize("files", [{}, {"agent-runner.toml": 'org = "from-project"\naddress = "p:1"\n'}])
def test_values_are_those_of_the_settings(
    variables: dict[str, str], files: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("from-file\n")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    where = _connection.connection()
    # What `settings` reads from files it leaves in the environment.
    monkeypatch.setattr(os, "environ", dict(os.environ))
    loaded = settings.load()

    assert (where.address or "127.0.0.1:7234") == loaded.address
    assert (where.api_key, where.org, where.data_dir) == (loaded.key, loaded.org, loaded.data_dir)


def test_names_that_are_not_looked_up_are_settings() -> None:
    assert settings.known_variables() >= _connection.NEEDS_NO_CHECK


def test_a_misspelt_variable_is_an_error_with_a_suggestion(
    offline: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_RUNNER_ADRESS", "a:1")

    result = offline("get", "agents")

    assert result.code == 2
    assert "Did you mean AGENT_RUNNER_ADDRESS?" in result.err


def test_a_broken_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "agent-runner.toml").write_text("org = ")

    with pytest.raises(SettingsError, match=r"agent-runner\.toml cannot be read"):
        _connection.connection()


def test_a_flag_wins(offline: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_RUNNER_ADDRESS", "127.0.0.1:1")

    assert "127.0.0.1:2" in offline("get", "agents", "--address", "127.0.0.1:2").err
    assert "is not host:port" in offline("get", "agents", "--address", "a b").err


def cpu_seconds(*arguments: str) -> float:
    """CPU of the quickest of five runs: other work on the machine only ever adds to it."""
    environment = {**os.environ, "AGENT_RUNNER_ADDRESS": "127.0.0.1:1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    taken = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)  # in microseconds; `os.times` has hundredths
        subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, timeout=300, check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


@pytest.mark.parametrize(
    ("arguments", "needs"),
    [
        (["--help"], "click, json, tomllib"),
        (["get", "agents"], "click, grpc.aio, google.protobuf.json_format"),
    ],
)
def test_commands_take_little_more_than_the_libraries_they_need(
    arguments: list[str], needs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))

    assert cpu_seconds("-m", "agent_runner", *arguments) < 3.5 * cpu_seconds("-c", f"import {needs}")


@pytest.mark.parametrize(
    ("arguments", "never"),
    [
        (["--help"], ["grpc", "rich", "google.protobuf", "asyncio", "pydantic", "ai.stigmer"]),
        (["get", "agents"], ["rich", "protovalidate", "ruamel", "pydantic"]),
    ],
)
def test_commands_import_nothing_they_do_not_need(
    arguments: list[str], never: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    heavy = ["temporalio", "langchain", "langchain_core", "langgraph", "deepagents", *never]
    program = (
        "import sys; from agent_runner.cli._main import run; run(sys.argv[1:]); "
        f"print([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "AGENT_RUNNER_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.stderr.splitlines()[-1] == "[]"
