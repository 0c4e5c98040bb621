"""Commands on a terminal: a pseudo-terminal, the program itself, and keys pressed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from unit.cli.terminals import Terminal
from unit.client.small_server import SmallServer

from agent_runner.v1.events_pb2 import ExecutionEvent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import TodoItem
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_COMPLETED,
    EXECUTION_IN_PROGRESS,
    MESSAGE_AI,
    TODO_IN_PROGRESS,
)

TIME = "2026-01-02T03:04:05Z"
SHOWS_CURSOR = "\x1b[?25h"


@pytest.fixture
def terminal(server: SmallServer) -> Iterator[Callable[..., Terminal]]:
    server.live = True
    opened: list[Terminal] = []
    environment = {
        **os.environ,
        "AGENT_RUNNER_ADDRESS": server.address,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TERM": "xterm-256color",
        "COLUMNS": "100",
        "LINES": "30",
    }

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal(*arguments, environment=environment))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def event(**fields: object) -> ExecutionEvent:
    return ExecutionEvent(time=TIME, **fields)  # type: ignore[arg-type]


def begun() -> list[ExecutionEvent]:
    """In progress, a todo, a tool that runs, and text that comes."""
    return [
        event(phase_changed={"phase": EXECUTION_IN_PROGRESS}),
        event(todos_changed={"todos": [TodoItem(id="0", content="Write it down", status=TODO_IN_PROGRESS)]}),
        event(tool_call_started={"tool_call_id": "c1", "name": "execute", "args": {"command": "ls"}}),
        event(message_started={"message_id": "m1", "type": MESSAGE_AI}),
        event(message_delta={"message_id": "m1", "text": "Half a \x1b[31msent"}),
    ]


def test_the_live_view_shows_what_goes_on_and_leaves_the_answer(
    server: SmallServer, terminal: Callable[..., Terminal]
) -> None:
    screen = terminal("run", "hello")
    screen.read_until("execution aex-")
    server.add_from_outside(*begun())
    shown = screen.read_until(r"Half a sent.*\[>\] Write it down.*running  execute command=ls.*IN_PROGRESS")
    assert "\x1b[31m" not in shown
    server.add_from_outside(
        event(message_completed={"message_id": "m1", "content": "A whole sentence."}),
        event(phase_changed={"phase": EXECUTION_COMPLETED}),
    )

    assert screen.wait() == 0
    assert "A whole sentence." in screen.text
    assert screen.text.rindex(SHOWS_CURSOR) > screen.text.index("\x1b[?25l")
    assert "Go on with: agent-runner run --session ses-" in screen.text


def test_ctrl_c_detaches_and_says_how_to_go_on(
    server: SmallServer, terminal: Callable[..., Terminal]
) -> None:
    screen = terminal("run", "hello")
    server.add_from_outside(*begun())
    screen.read_until("Half a sent")
    screen.press_ctrl_c()

    assert screen.wait() == 130
    assert "Detaching; press Ctrl-C again within 2 s to cancel the run." in screen.text
    assert "Still running. Go on watching with: agent-runner watch aex-" in screen.text
    assert server.cancelled == []


def test_a_second_ctrl_c_cancels(server: SmallServer, terminal: Callable[..., Terminal]) -> None:
    screen = terminal("run", "hello")
    server.add_from_outside(*begun())
    screen.read_until("Half a sent")
    screen.press_ctrl_c()
    screen.read_until("Detaching")
    screen.press_ctrl_c()
    screen.read_until("Cancelling")
    server.add_from_outside(event(phase_changed={"phase": EXECUTION_CANCELLED, "error": "Ctrl-C"}))

    assert screen.wait() == 130
    assert len(server.cancelled) == 1
    assert "CANCELLED" in screen.text


def test_for_scripts_the_first_ctrl_c_cancels(server: SmallServer, terminal: Callable[..., Terminal]) -> None:
    screen = terminal("run", "hello", "--cancel-on-interrupt")
    server.add_from_outside(*begun())
    screen.read_until("Half a sent")
    screen.press_ctrl_c()
    screen.read_until("Cancelling")
    server.add_from_outside(event(phase_changed={"phase": EXECUTION_CANCELLED}))

    assert screen.wait() == 130
    assert len(server.cancelled) == 1


def test_ctrl_c_ends_a_watch_and_nothing_else(server: SmallServer, terminal: Callable[..., Terminal]) -> None:
    first = terminal("run", "hello", "--no-follow")
    assert first.wait() == 0
    screen = terminal("watch", "latest")
    server.add_from_outside(*begun())
    screen.read_until("Half a sent")
    screen.press_ctrl_c()

    assert screen.wait() == 130
    assert server.cancelled == []


def test_deleting_asks_and_takes_no_for_an_answer(
    server: SmallServer, terminal: Callable[..., Terminal]
) -> None:
    assert terminal("run", "hello", "--no-follow").wait() == 0
    screen = terminal("delete", "agent", "assistant")
    screen.read_until(re.escape("Delete agent/assistant? [y/N]"))
    screen.type("n\n")

    assert screen.wait() == 1
    assert len(server.stored["Agent"]) == 1


def test_a_closed_pipe_is_silent(server: SmallServer, terminal: Callable[..., Terminal]) -> None:
    server.live = False
    server.events = [event(seq=n, message_delta={"text": "x" * 1000}) for n in range(1, 500)]
    server.events.append(event(seq=500, phase_changed={"phase": EXECUTION_COMPLETED}))
    environment = {
        **os.environ,
        "AGENT_RUNNER_ADDRESS": server.address,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = f"{sys.executable} -m agent_runner run hello -o jsonl | head -1; echo ${{PIPESTATUS[0]}}"

    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=300, check=False
    )

    assert done.stdout.splitlines()[-1] == "0", done.stderr
    assert "Error" not in done.stderr
    assert "Traceback" not in done.stderr
