"""The program as people use it: a home of its own, the real stack, a scripted model."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from unit.cli.terminals import Terminal

from agent_runner.adapters.machine.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
WITHIN = 300.0

# Waits in its middle until the test lets it go on, however slow the machine is.
GATED = """\
turns:
  - steps:
      - text: "one two three"
        calls: [{name: execute, args: {command: "until [ -e go ]; do sleep 0.1; done"}}]
      - text: "fifteen"
"""
# Goes on until somebody ends it.
ENDLESS = f"""\
turns:
  - steps:
      - text: "one two three {"and so on " * 2000}"
        delay_ms: 200
"""
SHORT = "turns: [{steps: [It is over.]}]"
VARIABLES = """\
turns:
  - steps:
      - calls:
          - name: execute
            args:
              command: |
                echo "PLAIN=$PLAIN"
                case "$TOKEN" in s3cr*value) echo "the token is ${#TOKEN} long";; esac
                echo $TOKEN
      - text: "Looked."
"""


@dataclass
class Home:
    """Where a user works: home, data directory and environment."""

    path: Path
    environment: dict[str, str] = field(default_factory=dict)
    terminals: list[Terminal] = field(default_factory=list)

    @property
    def data_dir(self) -> Path:
        return self.path / "data"

    def __post_init__(self) -> None:
        kept = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        self.environment = kept | {
            "HOME": str(self.path),
            "AGENT_RUNNER_DATA_DIR": str(self.data_dir),
            "PYTHONPATH": str(ROOT / "src"),
            **self.environment,
        }

    def script(self, text: str) -> str:
        path = self.path / f"script-{abs(hash(text))}.yaml"
        path.write_text(text)
        return f"script:{path}"

    def let_go(self) -> None:
        """Let what waits at a gate go on."""
        deadline = time.monotonic() + WITHIN
        while not (places := list(self.data_dir.glob("sandboxes/sessions/ses-*/workspace"))):
            assert time.monotonic() < deadline, "there is no sandbox"
            time.sleep(0.05)
        for place in places:
            (place / "go").touch()

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "agent_runner", *arguments],
            cwd=self.path,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=WITHIN)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def ok(self, *arguments: str, **environment: str) -> str:
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def terminal(self, *arguments: str) -> Terminal:
        environment = self.environment | {"TERM": "xterm-256color", "COLUMNS": "110", "LINES": "40"}
        self.terminals.append(Terminal(*arguments, environment=environment, directory=self.path))
        return self.terminals[-1]

    def json(self, *arguments: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.ok(*arguments, "-o", "json"))
        return found

    def stack(self) -> dict[str, object]:
        state: dict[str, object] = json.loads((self.data_dir / "stack.json").read_text())
        return state

    def processes(self) -> list[psutil.Process]:
        """Every process that works on this home, whoever its parent is now."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("AGENT_RUNNER_DATA_DIR") == str(self.data_dir):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def wait_for_no_process(self) -> None:
        deadline = time.monotonic() + WITHIN
        while left := self.processes():
            assert time.monotonic() < deadline, [p.cmdline() for p in left]
            psutil.wait_procs(left, timeout=0.2)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    _clean_up(home)


def _clean_up(home: Home) -> None:
    for terminal in home.terminals:
        terminal.close()
    home.run("down")
    for process in home.processes():
        process.kill()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home whose stack runs."""
    home = Home(tmp_path_factory.mktemp("up"))
    home.ok("up", "--detach", "--port", "0")
    yield home
    _clean_up(home)


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """What a process writes to stderr, until the pattern is in it."""
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    text, deadline = "", time.monotonic() + WITHIN
    while not re.search(pattern, text):
        ready, _, _ = select.select([process.stderr], [], [], max(deadline - time.monotonic(), 0))
        piece = os.read(process.stderr.fileno(), 65536).decode() if ready else ""
        if not piece:
            raise AssertionError(f"{pattern!r} did not come: {text}")
        text += piece
    return text


def test_manifests_a_run_a_second_message_and_a_restart_that_forgets_nothing(home: Home) -> None:
    home.ok("up", "--detach", "--port", "0")
    assert home.ok("apply", "-f", str(ROOT / "examples")).splitlines() == [
        "environment/workshop created",
        "agent/planner created",
        "agent/reviewer created",
        "instance/planner-workshop created",
    ]
    first = home.run("run", "--agent", "planner", "Write about the sea")
    assert first.returncode == 0, first.stderr
    assert 'Your message was: "Write about the sea"' in first.stdout
    assert "[x] Report what was done" in first.stderr
    session = re.search(r"session (ses-\w+)", first.stderr)
    assert session is not None

    second = home.run("run", "--session", session[1], "And now?")
    assert second.returncode == 0
    assert 'You wrote before: "Write about the sea".' in second.stderr

    home.ok("down")
    home.wait_for_no_process()
    home.ok("up", "--detach", "--port", "0")
    third = home.ok("run", "--session", session[1], "Still there?")
    assert "message 3 of the session" in third
    phases = [line.split()[1] for line in home.ok("get", "executions").splitlines()[1:]]
    assert phases == ["COMPLETED"] * 3


def test_a_run_without_a_stack_brings_its_own_and_leaves_nothing(home: Home) -> None:
    done = home.run("run", "hello", "--model", "script:echo")

    assert (done.returncode, done.stdout) == (0, "You said: hello\n"), done.stderr
    assert "Starting a stack for this run" in done.stderr
    home.wait_for_no_process()
    assert not (home.data_dir / "stack.json").exists()


def test_two_commands_without_a_stack_share_one(home: Home) -> None:
    commands = [home.start("run", f"hello {n}", "--model", "script:echo") for n in range(3)]

    results = [command.communicate(timeout=WITHIN) for command in commands]

    assert [c.returncode for c in commands] == [0, 0, 0], results
    assert sorted(out for out, _ in results) == [f"You said: hello {n}\n" for n in range(3)]


def test_a_stack_that_commands_share_ends_with_the_last_of_them(home: Home) -> None:
    longer = home.start("run", "hello", "--model", home.script(GATED))
    read_until(longer, "tool  ")

    shorter = home.run("run", "hello", "--model", home.script(SHORT))
    home.let_go()
    longer.communicate(timeout=WITHIN)

    assert (shorter.returncode, longer.returncode) == (0, 0)
    assert "stays up" not in shorter.stderr
    home.wait_for_no_process()


def test_a_run_that_was_left_keeps_the_stack_of_who_comes_after(home: Home) -> None:
    left = home.start("run", "hello", "--model", home.script(GATED))
    read_until(left, "tool  ")
    other = home.start("run", "hello", "--model", home.script(GATED))
    read_until(other, "tool  ")

    left.send_signal(signal.SIGINT)
    left.communicate(timeout=WITHIN)
    other.send_signal(signal.SIGINT)
    _, err = other.communicate(timeout=WITHIN)

    assert "The stack stays up for what still runs" in err
    home.ok("down")
    home.wait_for_no_process()


def test_what_is_not_followed_goes_on_in_a_stack_that_stays(home: Home) -> None:
    done = home.run("run", "hello", "--model", home.script(GATED), "--no-follow")

    assert done.returncode == 0, done.stderr
    assert "The stack stays up" in done.stderr
    home.let_go()
    assert "COMPLETED" in home.ok("watch", done.stdout.strip())
    home.ok("down")
    home.wait_for_no_process()


def test_a_temporary_stack_ends_when_its_command_is_killed(home: Home) -> None:
    process = home.start("run", "hello", "--model", home.script(ENDLESS))
    read_until(process, "IN_PROGRESS")
    process.kill()
    process.communicate(timeout=WITHIN)

    home.wait_for_no_process()


def test_a_run_that_is_terminated_takes_its_stack_with_it(home: Home) -> None:
    process = home.start("run", "hello", "--model", home.script(ENDLESS))
    read_until(process, "IN_PROGRESS")
    process.terminate()
    process.communicate(timeout=WITHIN)

    assert process.returncode == 143
    home.wait_for_no_process()


def test_ctrl_c_leaves_a_run_to_a_stack_that_stays(home: Home) -> None:
    screen = home.terminal("run", "hello", "--model", home.script(GATED))
    screen.read_until("one two three")
    screen.press_ctrl_c()

    assert screen.wait() == 130
    assert "The stack stays up for what still runs" in screen.text
    home.let_go()
    assert "fifteen" in home.ok("watch", "latest")
    home.ok("down")
    home.wait_for_no_process()


def test_two_stacks_started_at_once_are_one(home: Home) -> None:
    commands = [home.start("up", "--detach", "--port", "0") for _ in range(2)]

    results = [command.communicate(timeout=WITHIN) for command in commands]

    assert [c.returncode for c in commands] == [0, 0], results
    assert sorted("runs already" in err for _, err in results) == [False, True]


def test_a_second_ctrl_c_cancels_for_good_and_keeps_what_was_said(up: Home) -> None:
    screen = up.terminal("run", "hello", "--model", up.script(ENDLESS))
    screen.read_until("one two three")
    screen.press_ctrl_c()
    screen.read_until("Detaching")
    screen.press_ctrl_c()

    assert screen.wait() == 130
    assert re.search(r"one two three[\w ]* …\r\n.*CANCELLED", screen.text, re.DOTALL)
    assert "CANCELLED" in up.ok("get", "execution", "latest")


def test_a_busy_session_queues_or_refuses_or_lets_go(up: Home) -> None:
    first = up.start("run", "hello", "--model", up.script(ENDLESS))
    session = re.search(r"session (ses-\w+)", read_until(first, "IN_PROGRESS"))
    assert session is not None
    rest = ("--session", session[1], "--model", "script:echo")

    refused = up.run("run", "no", *rest, "--if-busy", "reject")
    assert refused.returncode == 6
    queued = up.start("run", "later", *rest)
    read_until(queued, "It waits for 1 of the session before it")
    interrupting = up.start("run", "now", *rest, "--if-busy", "interrupt")

    out, _ = first.communicate(timeout=WITHIN)
    assert (first.returncode, out) == (1, "")
    assert queued.communicate(timeout=WITHIN)[0] in ("You said: later\n", "")
    assert interrupting.communicate(timeout=WITHIN)[0] == "You said: now\n"


def test_json_lines_are_the_whole_log_and_watching_again_gives_the_same(up: Home) -> None:
    lines = up.ok("run", "hello", "--model", "script:demo", "-o", "jsonl").splitlines()
    events = [json.loads(line) for line in lines]

    assert [int(e["seq"]) for e in events] == list(range(1, len(events) + 1))
    assert events[-1]["phaseChanged"]["phase"] == "EXECUTION_COMPLETED"
    assert up.ok("watch", "latest", "-o", "jsonl").splitlines() == lines
    assert up.ok("watch", "latest", "-o", "jsonl", "--after-seq", "5").splitlines() == lines[5:]


def test_an_instance_brings_the_variables_of_its_environments(up: Home) -> None:
    up.ok("apply", "-f", str(ROOT / "examples"))
    look = up.script(VARIABLES.replace("$TOKEN", "$WORKSHOP_TOKEN").replace("$PLAIN", "$GREETING"))

    own = up.ok("run", "look", "--agent", "planner", "--model", look, "-o", "jsonl")
    workshop = up.ok("run", "look", "--instance", "planner-workshop", "--model", look, "-o", "jsonl")

    assert "PLAIN=Hello from the agent" in own
    assert "PLAIN=Hello from the environment" in workshop
    assert "not-a-real-token" not in workshop
    assert "not-a-real-token" not in up.ok("get", "environment", "workshop", "-o", "yaml")


def test_names_are_completed_from_the_server(up: Home) -> None:
    up.ok("apply", "-f", str(ROOT / "examples"))

    def completed(line: str) -> list[str]:
        words = line.split(" ")
        done = up.run(COMP_WORDS=line, COMP_CWORD=str(len(words) - 1), _AGENT_RUNNER_COMPLETE="bash_complete")
        assert (done.returncode, done.stderr) == (0, "")
        return [found.partition(",")[2] for found in done.stdout.splitlines() if found]

    assert completed("agent-runner get agent pl") == ["planner"]
    assert "reviewer" in completed("agent-runner run --agent ")
    assert completed("agent-runner get env") == ["environments"]
    assert completed("agent-runner get nonsense ") == []


def test_variables_reach_the_sandbox_and_secrets_are_masked_everywhere(up: Home) -> None:
    done = up.run(
        "run", "look", "--model", up.script(VARIABLES), "-e", "PLAIN=seen", "-e", "secret:TOKEN=s3cr3t-value",
        "-o", "jsonl",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "PLAIN=seen" in done.stdout
    assert "the token is 12 long" in done.stdout
    for text in (
        done.stdout,
        up.ok("get", "execution", "latest", "-o", "json"),
        up.ok("describe", "execution", "latest"),
        up.ok("logs", "--tail", "-1"),
    ):
        assert "s3cr3t-value" not in text


def test_a_run_is_cancelled_from_another_terminal(up: Home) -> None:
    running = up.start("run", "hello", "--model", up.script(ENDLESS))
    id = re.search(r"execution (aex-\w+)", read_until(running, "IN_PROGRESS"))
    assert id is not None
    up.ok("cancel", id[1], "--reason", "enough")
    out, err = running.communicate(timeout=WITHIN)

    assert (running.returncode, out) == (1, "")
    assert "CANCELLED" in err
    again = up.run("cancel", id[1])
    assert again.returncode == 6
    assert "(FAILED_PRECONDITION)" in again.stderr


def test_a_timeout_leaves_the_run_alone(up: Home) -> None:
    done = up.run("run", "hello", "--model", up.script(GATED), "--timeout", "0.5")

    assert done.returncode == 124
    up.let_go()
    assert "COMPLETED" in up.ok("watch", "latest")


def test_a_run_goes_on_when_the_stack_is_killed_and_started_again(home: Home) -> None:
    port = str(free_port())
    home.ok("up", "--detach", "--port", port)
    model = home.script(ENDLESS)
    running = home.start("run", "hello", "--model", model, "-o", "jsonl")
    read_until(running, "execution aex-")
    assert running.stdout is not None
    first = [running.stdout.readline() for _ in range(3)]
    stack = psutil.Process(int(str(home.stack()["pid"])))
    stack.kill()
    stack.wait(WITHIN)
    Path(model.removeprefix("script:")).write_text(SHORT)  # what is asked for again is soon said
    home.ok("up", "--detach", "--port", port)
    out, err = running.communicate(timeout=WITHIN)

    assert running.returncode == 0, err
    events = [json.loads(line) for line in [*first, *out.splitlines()]]
    assert [int(e["seq"]) for e in events] == list(range(1, len(events) + 1))
    assert "The connection was lost" in err
    assert "It is over." in str(events)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(home: Home, number: signal.Signals) -> None:
    process = home.start("up", "--port", "0")
    read_until(process, "Agent Runner is up at")
    process.send_signal(number)

    process.communicate(timeout=WITHIN)
    assert process.returncode == 0
    home.wait_for_no_process()
    assert not (home.data_dir / "stack.json").exists()


def test_a_stack_in_the_foreground_logs_without_colours_where_they_are_not_wanted(home: Home) -> None:
    home.environment["NO_COLOR"] = "1"
    screen = home.terminal("up", "--port", "0")
    screen.read_until("Ctrl-C stops it")
    screen.press_ctrl_c()

    assert screen.wait() == 0
    assert "stack is ready" in screen.text
    assert "\x1b[" not in screen.text


def test_a_second_up_says_who_holds_the_directory(up: Home) -> None:
    again = up.run("up", "--port", "0")
    assert again.returncode == 6
    assert str(up.stack()["pid"]) in again.stderr
    assert "(FAILED_PRECONDITION)" in again.stderr

    detached = up.run("up", "--detach")
    assert detached.returncode == 0
    assert "runs already" in detached.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stack_that_waits_for_temporal_is_stopped_by_one_signal(home: Home, number: signal.Signals) -> None:
    process = home.start("up", "--port", "0", TEMPORAL_ADDRESS=f"127.0.0.1:{free_port()}")
    read_until(process, "waiting for Temporal")
    process.send_signal(number)
    _, err = process.communicate(timeout=WITHIN)

    assert process.returncode == 0, err
    assert "Traceback" not in err


def test_a_taken_port_is_named_and_nothing_is_left(home: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for flags in ((), ("--detach",)):
            done = home.run("up", "--port", str(port), *flags)
            assert done.returncode == 2, done.stderr
            assert str(port) in done.stderr
            assert "Traceback" not in done.stderr
            assert "add_port" not in done.stderr  # gRPC's own words
    home.wait_for_no_process()


def test_a_data_directory_that_cannot_be_is_named(home: Home) -> None:
    home.data_dir.write_text("a file is in the way")
    for command in (("up",), ("up", "--detach"), ("run", "hello")):
        done = home.run(*command)
        assert done.returncode not in (0, 130)
        assert str(home.data_dir) in done.stderr
        assert "Traceback" not in done.stderr


def test_listening_for_the_network_needs_a_key(home: Home) -> None:
    done = home.run("up", "--listen", "0.0.0.0:0")

    assert done.returncode == 2
    assert "AGENT_RUNNER_API_KEY" in done.stderr


def test_a_key_is_asked_for_when_one_is_set(home: Home) -> None:
    home.ok("up", "--detach", "--port", "0", AGENT_RUNNER_API_KEY="right")

    assert home.run("get", "agents").returncode == 4
    assert home.run("get", "agents", AGENT_RUNNER_API_KEY="wrong").returncode == 4
    assert (
        home.ok("run", "hello", "--model", "script:echo", AGENT_RUNNER_API_KEY="right") == "You said: hello\n"
    )


def wrong(up: Home) -> dict[str, Callable[[], subprocess.CompletedProcess[str]]]:
    nothing = "0" * 26
    return {
        "5 agent 'nobody' was not found": lambda: up.run("run", "x", "--agent", "nobody"),
        "5 session": lambda: up.run("run", "x", "--session", f"ses-{nothing}"),
        "5 execution": lambda: up.run("watch", f"aex-{nothing}"),
        "5 cution": lambda: up.run("cancel", f"aex-{nothing}"),
        "5 skill": lambda: up.run("get", "skill", "nothing"),
        "2 The message is empty": lambda: up.run("run", " "),
        "1 not known": lambda: up.run("run", "x", "--model", "nobody:nothing"),
        "1 No model is configured": lambda: up.run("run", "x"),
    }


@pytest.mark.parametrize("expected", list(wrong(None)))  # type: ignore[arg-type]
def test_what_is_not_there_is_told(up: Home, expected: str) -> None:
    code, _, words = expected.partition(" ")

    done = wrong(up)[expected]()

    assert done.returncode == int(code), done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_five_megabytes_of_message_get_a_plain_answer(up: Home) -> None:
    message = up.path / "long.txt"
    message.write_text("word " * 1_048_576)
    with message.open("rb") as stdin:
        done = subprocess.run(
            [sys.executable, "-m", "agent_runner", "run", "-", "--model", "script:echo", "-o", "json"],
            env=up.environment,
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=WITHIN,
            check=False,
        )

    assert done.returncode in (0, 1, 2), done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert up.ok("run", "after it", "--model", "script:echo") == "You said: after it\n"


@pytest.mark.parametrize(
    "locale",
    [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
)
def test_answers_and_data_are_utf_8_in_every_locale(up: Home, locale: dict[str, str]) -> None:
    model = up.script("turns: [{steps: ['Grüße … 你好 🎉']}]")

    assert up.ok("run", "hello", "--model", model, **locale) == "Grüße … 你好 🎉\n"
    assert "Grüße … 你好 🎉" in up.ok("get", "execution", "latest", "-o", "json", **locale)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_a_stream_the_shell_has_closed_is_no_error(up: Home, closed: str) -> None:
    program = f"exec {shlex.quote(sys.executable)} -m agent_runner run hello --model script:echo {closed}"
    done = subprocess.run(
        ["sh", "-c", program], cwd=up.path, env=up.environment, capture_output=True, text=True, timeout=WITHIN
    )

    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ("" if closed.startswith(">") else "You said: hello\n")


def test_the_machine_can_be_asked_what_works(up: Home) -> None:
    rows = {row["name"]: row for row in json.loads(up.run("doctor", "-o", "json").stdout)}

    assert rows["temporal"]["ok"]
    assert rows["data directory"]["ok"]
    versions = up.json("version")
    assert versions["server"] == versions["client"]
    assert up.json("status")["reachable"] is True
