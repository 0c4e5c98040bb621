from __future__ import annotations

import json
import re
from pathlib import Path

import grpc
import pytest
from unit.cli.conftest import Command
from unit.client.small_server import SmallServer

from agent_runner.client.kinds import AGENT
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent

AGENT_YAML = """\
kind: Agent
metadata: {name: reviewer, labels: {team: a}}
spec:
  instructions: Review what you are given.
"""


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_applying_prints_created_then_unchanged_then_configured(command: Command, tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", AGENT_YAML)

    assert command("apply", "-f", file).out == "agent/reviewer created\n"
    assert command("apply", "-f", file).out == "agent/reviewer unchanged\n"
    write(tmp_path / "a.yaml", AGENT_YAML.replace("given", "shown"))
    assert command("apply", "-f", file).out == "agent/reviewer configured\n"


def test_defaults_are_set_before_applying(command: Command, server: SmallServer, tmp_path: Path) -> None:
    command("apply", "-f", write(tmp_path / "a.yaml", AGENT_YAML))

    (agent,) = server.stored["Agent"].values()
    assert isinstance(agent, Agent)
    assert agent.api_version == "agentic.stigmer.ai/v1"
    assert (agent.metadata.org, agent.metadata.owner_scope) == ("local", 2)


def test_what_others_refer_to_is_applied_first_and_names_become_ids(
    command: Command, server: SmallServer, tmp_path: Path
) -> None:
    file = write(
        tmp_path / "all.yaml",
        "kind: Session\nmetadata: {name: s}\nspec: {agentInstanceId: i}\n---\n"
        "kind: AgentInstance\nmetadata: {name: i}\nspec: {agent_id: reviewer, environment_refs: [e]}\n---\n"
        f"{AGENT_YAML}---\n"
        "kind: Environment\nmetadata: {name: e}\nspec: {data: {A: b}}\n",
    )

    result = command("apply", "-f", file)

    assert result.out.splitlines() == [
        "environment/e created",
        "agent/reviewer created",
        "instance/i created",
        f"session/{next(iter(server.stored['Session'].values())).metadata.slug} created",  # type: ignore[attr-defined]
    ]
    (instance,) = server.stored["AgentInstance"].values()
    assert instance.spec.agent_id in server.stored["Agent"]  # type: ignore[attr-defined]
    assert instance.spec.environment_refs[0].slug == "e"  # type: ignore[attr-defined]


def test_a_reference_to_nothing_is_told_with_its_place(command: Command, tmp_path: Path) -> None:
    file = write(tmp_path / "i.yaml", "kind: AgentInstance\nmetadata: {name: i}\nspec:\n  agent_id: nobody\n")

    result = command("apply", "-f", file)

    assert result.code == 5
    assert f"{file}:4:3: spec.agent_id: agent 'nobody' was not found." in result.err


def test_a_violation_told_by_the_server_shows_its_place(
    command: Command, server: SmallServer, tmp_path: Path
) -> None:
    server.violations = [("spec.instructions", "must be polite")]
    file = write(tmp_path / "a.yaml", AGENT_YAML)

    result = command("apply", "-f", file)

    assert result.code == 2
    assert f"{file}:4:3: spec.instructions: must be polite" in result.err


def test_a_dry_run_on_the_server_changes_nothing(
    command: Command, server: SmallServer, tmp_path: Path
) -> None:
    file = write(
        tmp_path / "a.yaml",
        AGENT_YAML + "---\nkind: AgentInstance\nmetadata: {name: i}\nspec: {agent_id: reviewer}\n",
    )

    result = command("apply", "-f", file, "--dry-run", "server")

    assert result.out.splitlines() == [
        "agent/reviewer created (server dry run)",
        "instance/i created (server dry run)",
    ]
    assert server.stored.get("Agent", {}) == {}


def test_a_dry_run_here_needs_no_server(offline: Command, tmp_path: Path) -> None:
    result = offline("apply", "-f", write(tmp_path / "a.yaml", AGENT_YAML), "--dry-run", "client")

    assert (result.code, result.out) == (0, "agent/reviewer valid (dry run)\n")


@pytest.fixture
def agents(server: SmallServer) -> None:
    for name in ("planner", "reviewer"):
        server._put(AGENT, server.stored.setdefault("Agent", {}), Agent(metadata={"name": name}))


@pytest.mark.usefixtures("agents")
def test_a_table_has_upper_case_headers_and_no_borders(command: Command) -> None:
    lines = command("get", "agents").out.splitlines()

    assert lines[0].split() == ["NAME", "DESCRIPTION", "AGE"]
    assert lines[1].split() == ["reviewer", "-", "-"]


@pytest.mark.usefixtures("agents")
def test_every_output_form_is_data_alone_on_stdout(command: Command) -> None:
    assert [a["metadata"]["slug"] for a in json.loads(command("get", "ag", "-o", "json").out)["items"]] == [
        "reviewer",
        "planner",
    ]
    assert json.loads(command("get", "agent", "planner", "-o", "json").out)["metadata"]["slug"] == "planner"
    lines = command("get", "agents", "-o", "jsonl").out.splitlines()
    assert [json.loads(line)["metadata"]["slug"] for line in lines] == ["reviewer", "planner"]
    assert command("get", "agent/planner", "-o", "name").out == "agent/planner\n"
    assert "slug: planner" in command("get", "agents", "-o", "yaml").out


@pytest.mark.usefixtures("agents")
def test_yaml_can_be_applied_again(command: Command, tmp_path: Path) -> None:
    command("apply", "-f", write(tmp_path / "a.yaml", AGENT_YAML))
    text = command("get", "agent", "reviewer", "-o", "yaml").out

    assert command("apply", "-f", write(tmp_path / "b.yaml", text)).out == "agent/reviewer unchanged\n"


@pytest.mark.usefixtures("agents")
def test_a_longer_list_says_how_to_see_all_of_it(command: Command) -> None:
    result = command("get", "agents", "--limit", "1")

    assert len(result.out.splitlines()) == 2
    assert "--limit 0 shows all" in result.err


def test_an_empty_list_is_no_error(command: Command) -> None:
    result = command("get", "executions")

    assert (result.code, result.out, result.err) == (0, "", "There are no executions in 'local' yet.\n")
    assert json.loads(command("get", "executions", "-o", "json").out) == {"items": []}


@pytest.mark.usefixtures("agents")
def test_describing_shows_head_and_specification(command: Command) -> None:
    assert "Name:          planner" in command("describe", "agent", "planner").out


@pytest.mark.usefixtures("agents")
def test_deleting_asks_and_without_a_terminal_wants_yes(command: Command, server: SmallServer) -> None:
    refused = command("delete", "agent", "planner")
    assert refused.code == 2
    assert "--yes" in refused.err
    assert len(server.stored["Agent"]) == 2

    assert command("delete", "agent", "planner", "--yes").out == "agent/planner deleted\n"
    assert len(server.stored["Agent"]) == 1


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (grpc.StatusCode.NOT_FOUND, 5),
        (grpc.StatusCode.UNAUTHENTICATED, 4),
        (grpc.StatusCode.ALREADY_EXISTS, 6),
        (grpc.StatusCode.FAILED_PRECONDITION, 6),
        (grpc.StatusCode.UNAVAILABLE, 7),
        (grpc.StatusCode.INVALID_ARGUMENT, 2),
        (grpc.StatusCode.INTERNAL, 1),
    ],
)
def test_each_failure_has_its_exit_code_and_its_code_in_brackets(
    command: Command, server: SmallServer, code: grpc.StatusCode, exit_code: int
) -> None:
    server.refuse = lambda method: (code, "the reason")

    result = command("delete", "session", "ses-1", "--yes")

    assert result.code == exit_code
    assert f"({code.name})" in result.err
    assert result.out == ""


@pytest.mark.parametrize("words", [(), ("skill",)])
def test_a_group_without_a_command_shows_its_help_and_no_error(
    offline: Command, words: tuple[str, ...]
) -> None:
    shown = offline(*words)

    assert (shown.code, shown.out) == (2, "")
    assert shown.err.startswith("Usage: agent-runner")
    assert "Error" not in shown.err
    assert "USAGE" not in shown.err


@pytest.mark.parametrize("group", [(), ("skill",), ("session",), ("env",), ("model",), ("admin",)])
def test_what_a_command_does_is_told_whole_in_the_list_of_commands(
    offline: Command, group: tuple[str, ...]
) -> None:
    cut = [line for line in offline(*group, "--help").out.splitlines()[1:] if line.endswith("...")]

    assert not cut


def test_a_message_without_quotes_is_told_to_want_them(offline: Command) -> None:
    told = offline("run", "Write", "a", "haiku")

    assert told.code == 2
    assert 'wants quotes: agent-runner run "Write a haiku"' in told.err


def test_without_a_server_the_next_command_is_told(offline: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_RUNNER_ADDRESS", "127.0.0.1:1")

    result = offline("get", "agents")

    assert result.code == 7
    assert result.err == "Error: No server answers at 127.0.0.1:1. (UNAVAILABLE)\nTry: agent-runner up\n"


def test_the_version_of_the_server_is_shown(command: Command) -> None:
    assert json.loads(command("version", "-o", "json").out)["server"] == "9.9.9"
    assert "9.9.9" in command("status").out


def test_status_tells_people_and_programs_what_the_server_uses(command: Command) -> None:
    shown = command("status").out
    assert re.search(r"^temporal +t:7233 \(reachable\)$", shown, re.M)
    assert "data dir" not in shown  # this one's says nothing of a server elsewhere

    told = json.loads(command("status", "-o", "json").out)
    assert (told["temporal"], told["temporal_reachable"], told["reachable"]) == ("t:7233", True, True)


def test_where_data_is_json_an_error_is_too(command: Command) -> None:
    for flags in (["-o", "json"], ["--output=jsonl"], ["-ojson"]):
        error = json.loads(command("get", "agent", "nobody", *flags).err)["error"]
        assert error["code"] == "NOT_FOUND"
    error = json.loads(command("get", "-o", "json").err)["error"]
    assert (error["code"], error["try"]) == ("USAGE", "agent-runner get --help")


def test_the_traceback_is_shown_when_it_is_asked_for(command: Command) -> None:
    assert "Traceback" in command("get", "agent", "nobody", "--debug").err
    assert "Traceback" not in command("get", "agent", "nobody").err


def test_colours_come_by_flag_and_go_by_environment(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b[31m" in command("--color", "always", "get", "foo").err
    assert "\x1b[31m" in command("get", "foo", "--color", "always").err
    assert "\x1b" not in command("get", "foo").err
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[31m" in command("get", "foo").err
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in command("get", "foo").err


def test_options_of_the_connection_may_stand_before_the_command(offline: Command) -> None:
    assert "127.0.0.1:2" in offline("--address", "127.0.0.1:2", "get", "agents").err
