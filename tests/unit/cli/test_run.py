from __future__ import annotations

import json

import click
import pytest
from unit.cli.conftest import Command
from unit.client.small_server import SmallServer, log_of

from agent_runner.cli.run import absolute_script, parse_variables
from agent_runner.v1.events_pb2 import ExecutionEvent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import TodoItem
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_COMPLETED,
    EXECUTION_FAILED,
    EXECUTION_IN_PROGRESS,
    MESSAGE_AI,
    TODO_COMPLETED,
)

TIME = "2026-01-02T03:04:05Z"


def a_run(phase: int = EXECUTION_COMPLETED, error: str = "") -> list[ExecutionEvent]:
    """Todos, a tool call, a message in pieces, the end."""
    events = [ExecutionEvent(time=TIME) for _ in range(8)]
    events[0].phase_changed.phase = 2  # type: ignore[assignment]
    events[1].todos_changed.todos.append(TodoItem(id="0", content="Write it", status=TODO_COMPLETED))
    events[2].tool_call_started.tool_call_id, events[2].tool_call_started.name = "c1", "write_file"
    events[2].tool_call_started.args["file_path"] = "/workspace/\x1b[2Jx"
    events[3].tool_call_completed.tool_call_id, events[3].tool_call_completed.result = "c1", "Updated"
    events[4].message_started.message_id, events[4].message_started.type = "m1", MESSAGE_AI
    events[5].message_delta.message_id, events[5].message_delta.text = "m1", "All "
    events[6].message_completed.message_id, events[6].message_completed.content = "m1", "All done."
    events[7].phase_changed.phase, events[7].phase_changed.error = phase, error  # type: ignore[assignment]
    for seq, event in enumerate(events, 1):
        event.seq = seq
    return events


@pytest.fixture
def finished(server: SmallServer, monkeypatch: pytest.MonkeyPatch) -> SmallServer:
    """Executions have said something and completed as soon as they are made."""
    server.events = a_run()
    put = server._put

    def answered(kind, table, resource):  # type: ignore[no-untyped-def]
        if kind.name == "AgentExecution":
            resource.status.messages.add(type=MESSAGE_AI, content="All done.\n")
        made = put(kind, table, resource)
        if kind.name == "AgentExecution":
            made.status.phase = server.events[-1].phase_changed.phase
        return made

    monkeypatch.setattr(server, "_put", answered)
    return server


def test_the_answer_is_on_stdout_and_progress_on_stderr(command: Command, finished: SmallServer) -> None:
    result = command("run", "hello")

    assert (result.code, result.out) == (0, "All done.\n")
    lines = [line[9:] for line in result.err.splitlines() if line[2:3] == ":"]
    assert lines == [
        "phase    IN_PROGRESS",
        "todo     [x] Write it",
        "tool     write_file file_path=/workspace/x",
        "done     write_file: Updated",
        "phase    COMPLETED in 0.0 s",
    ]
    assert "execution aex-" in result.err


def test_without_an_agent_the_assistant_is_made_once(command: Command, finished: SmallServer) -> None:
    command("run", "hello")
    command("run", "hello")

    assert [a.metadata.slug for a in finished.stored["Agent"].values()] == ["assistant"]  # type: ignore[attr-defined]


def test_json_lines_are_events_and_json_is_the_execution(command: Command, finished: SmallServer) -> None:
    lines = command("run", "hello", "-o", "jsonl").out.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [str(n) for n in range(1, 9)]

    execution = json.loads(command("run", "hello", "-o", "json").out)
    assert execution["status"]["phase"] == "EXECUTION_COMPLETED"


@pytest.mark.parametrize(
    ("if_busy", "says"),
    [("queue", "It waits for 2 of the session before it."), ("steer", "It joins what runs in the session")],
)
def test_what_a_busy_session_does_with_a_message_is_told(
    command: Command, finished: SmallServer, monkeypatch: pytest.MonkeyPatch, if_busy: str, says: str
) -> None:
    put = finished._put

    def queued(kind, table, resource):  # type: ignore[no-untyped-def]
        made = put(kind, table, resource)
        if kind.name == "AgentExecution":
            made.status.run.queue_position = 2
        return made

    monkeypatch.setattr(finished, "_put", queued)

    assert says in command("run", "hello", "--if-busy", if_busy).err


@pytest.mark.parametrize(("raw", "sent"), [(b"Gr\xc3\xbc\xc3\x9fe", "Grüße"), (b"a\xffb", "a\ufffdb")])
def test_a_message_of_another_encoding_is_read_as_utf_8(
    command: Command, finished: SmallServer, raw: bytes, sent: str
) -> None:
    assert command("run", raw.decode("ascii", "surrogateescape")).code == 0

    assert [e.spec.message for e in finished.stored["AgentExecution"].values()] == [sent]  # type: ignore[attr-defined]


def test_a_name_that_is_no_text_is_wrong_usage(command: Command) -> None:
    for words in (("get", "agent", "a\udcffb"), ("run", "hello", "-e", "secret:A=open\udcffsesame")):
        told = command(*words)

        assert (told.code, told.err.splitlines()[0]) == (2, "Error: An argument is no text in UTF-8. (USAGE)")
        assert "sesame" not in told.err


def test_a_message_that_joined_another_names_where_the_answer_comes(
    command: Command, finished: SmallServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = finished._put

    def joined(kind, table, resource):  # type: ignore[no-untyped-def]
        made = put(kind, table, resource)
        if kind.name == "AgentExecution":
            made.status.run.joined_execution_id = "aex-0"
        return made

    monkeypatch.setattr(finished, "_put", joined)

    assert "The answer comes there: agent-runner watch aex-0" in command("run", "hello").err


def test_a_failed_run_ends_with_1_and_says_why(command: Command, finished: SmallServer) -> None:
    finished.events = a_run(EXECUTION_FAILED, "The model was away.")

    result = command("run", "hello")

    assert (result.code, result.out) == (1, "")
    assert "message  All done." in result.err
    assert "error    The model was away." in result.err


def test_a_cancelled_run_keeps_what_was_being_said(command: Command, finished: SmallServer) -> None:
    events = a_run(EXECUTION_CANCELLED, "enough")
    finished.events = [*events[:6], events[7]]

    result = command("run", "hello")

    assert result.code == 1
    assert "message  All …" in result.err


def test_not_following_prints_the_id_alone(command: Command, finished: SmallServer) -> None:
    result = command("run", "hello", "--no-follow")

    assert result.out.strip() in finished.stored["AgentExecution"]
    assert finished.watches == []


def test_what_was_asked_for_reaches_the_server(
    command: Command, finished: SmallServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_HERE", "here")
    command(
        "run",
        "hello",
        "--if-busy",
        "reject",
        "--model",
        "m:n",
        "-e",
        "A=b=c",
        "-e",
        "secret:S=t",
        "-e",
        "FROM_HERE",
    )

    (execution,) = finished.stored["AgentExecution"].values()
    spec = execution.spec  # type: ignore[attr-defined]
    assert (spec.message, spec.execution_config.model_name) == ("hello", "m:n")
    assert spec.execution_config.options.if_busy == 2
    values = {name: (value.value, value.is_secret) for name, value in spec.runtime_env.items()}
    assert values == {"A": ("b=c", False), "S": ("t", True), "FROM_HERE": ("here", False)}


def test_an_unknown_agent_comes_with_the_names_there_are(command: Command, finished: SmallServer) -> None:
    command("run", "hello")

    result = command("run", "hello", "--agent", "asistant")

    assert result.code == 5
    assert "Did you mean assistant?" in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", ""), "The message is empty."),
        (("run", "  \n"), "The message is empty."),
        (("run",), "Missing argument"),
        (("run", "x", "--agent", "a", "--session", "s"), "--agent and --session were given"),
        (("run", "x", "--agent", "a", "--instance", "s"), "--agent and --instance were given"),
        (("run", "x", "--agent", ""), "--agent is empty"),
        (("run", "x", "--session", " "), "--session is empty"),
        (("run", "x", "--env", "=v"), "is not the name of a variable"),
        (("run", "x", "--env", "1A=v"), "is not the name of a variable"),
        (("run", "x", "--env", "A="), "empty value"),
        (("run", "x", "--env", "NOT_SET_ANYWHERE"), "not set here"),
        (("run", "x", "--timeout", "0"), "--timeout"),
        (("run", "x", "--output", "xml"), "'xml'"),
        (("run", "x", "--agnet", "a"), "--agent"),
        (("rnu", "x"), "Did you mean run?"),
        (("get",), "Missing argument"),
        (("get", "agent/"), "A name is missing"),
        (("get", "agents", "-l", "x"), "is not K=V"),
        (("watch",), "Missing argument"),
        (("watch", "x", "--after-seq", "-1"), "--after-seq"),
        (("describe", "agent"), "Say which one"),
        (("up", "--port", "1", "--listen", "a:1"), "not both"),
        (("logs", "--tail", "x"), "--tail"),
        (("completion", "tcsh"), "tcsh"),
    ],
)
def test_wrong_usage_is_told_in_words_with_exit_code_2(
    offline: Command, arguments: tuple[str, ...], words: str
) -> None:
    result = offline(*arguments)

    assert result.code == 2
    assert words in result.err
    assert result.err.startswith("Error: ")
    assert "Traceback" not in result.err


def test_watching_prints_lines_on_stdout(command: Command, finished: SmallServer) -> None:
    id = command("run", "hello", "--no-follow").out.strip()

    result = command("watch", id, "--after-seq", "4")

    assert result.code == 0
    assert "COMPLETED" in result.out
    assert result.err == ""
    assert command("watch", "latest", "-o", "jsonl").out.count("\n") == 8


def test_a_timeout_ends_the_watching_with_124(command: Command, server: SmallServer) -> None:
    result = command("run", "hello", "--timeout", "0.2")

    assert result.code == 124
    assert "agent-runner watch aex-" in result.err


def test_cancelling_asks_the_server(command: Command, server: SmallServer) -> None:
    id = command("run", "hello", "--no-follow").out.strip()

    assert command("cancel", id, "--reason", "enough").code == 0
    assert server.cancelled == [id]


def test_pausing_resuming_and_ending_by_force_ask_the_server(command: Command, server: SmallServer) -> None:
    id = command("run", "hello", "--no-follow").out.strip()

    assert "agent-runner resume" in command("pause", id).err
    assert command("resume", id).code == 0
    assert command("cancel", id, "--force").code == 0
    assert server.steps == [("PauseExecution", id), ("ResumeExecution", id), ("TerminateExecution", id)]
    assert server.cancelled == []


def test_an_unknown_execution_is_not_found(command: Command) -> None:
    result = command("watch", "aex-" + "0" * 26)

    assert result.code == 5
    assert "(NOT_FOUND)" in result.err


def test_a_session_is_gone_on_with_by_its_id_or_latest(command: Command, finished: SmallServer) -> None:
    assert command("run", "x", "--session", "latest").code == 5
    assert command("run", "x", "--session", "ses-" + "0" * 26).code == 5


def test_variables_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "value")

    assert parse_variables(["A=1", "secret:B=2", "secret:HERE"]) == ({"A": "1"}, {"B": "2", "HERE": "value"})
    assert parse_variables(["A=1", "secret:A=2"]) == ({}, {"A": "2"})
    with pytest.raises(click.UsageError):
        parse_variables(["A B=1"])


def test_a_script_is_named_by_its_whole_path(tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert absolute_script("script:a.yaml", tmp_path) == f"script:{tmp_path}/a.yaml"
    assert absolute_script("script:demo", tmp_path) == "script:demo"
    assert absolute_script("anthropic:claude", tmp_path) == "anthropic:claude"
    assert absolute_script("", tmp_path) == ""


def test_an_interrupted_log_goes_on_without_repeating(command: Command, server: SmallServer) -> None:
    server.events = log_of(3)
    assert command("run", "hello", "-o", "jsonl").out.count("\n") == 3


@pytest.mark.parametrize(
    ("phase", "says"),
    [(EXECUTION_CANCELLED, "Cancelled aex-"), (EXECUTION_IN_PROGRESS, "to stop. Watch it with")],
)
def test_a_cancel_says_whether_it_is_over_already(
    command: Command, finished: SmallServer, phase: int, says: str
) -> None:
    command("run", "hello")
    (execution,) = finished.stored["AgentExecution"].values()
    execution.status.phase = phase  # type: ignore[attr-defined]

    assert says in command("cancel", execution.metadata.id).err  # type: ignore[attr-defined]
