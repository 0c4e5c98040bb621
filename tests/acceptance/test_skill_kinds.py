"""The example skill in every kind of sandbox: pushed, run, and a session that keeps its one sandbox."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from acceptance.test_cli import WITHIN, Home, _clean_up
from acceptance.test_skill_runs import EXAMPLES, push, result, status
from contract.container_engine import UnixConnection, engine_url, whole_image
from contract.daytona_server import KEY, DaytonaServer

TEXT = "Agents run durably. They use skills, which are folders."
AGAIN = """\
turns:
  - steps:
      - calls:
          - name: execute
            args: {command: cat /workspace/text.txt}
      - text: "Read."
"""


@dataclass(frozen=True)
class Kind:
    """What a user sets for it, and how many sandboxes are there, asked behind the program's back."""

    environment: dict[str, str]
    count: Callable[[Home], int]


@contextmanager
def local(_: Path) -> Iterator[Kind]:
    yield Kind({}, lambda home: len(list((home.data_dir / "sandboxes/sessions").glob("ses-*"))))


@contextmanager
def docker(_: Path) -> Iterator[Kind]:
    url = engine_url()

    def count(_: Home) -> int:
        connection = UnixConnection(Path(url.removeprefix("unix://")))
        filters = quote(json.dumps({"label": ["agent-runner.managed=true"]}))
        connection.request("GET", f"/v1.40/containers/json?all=true&filters={filters}")
        found = json.loads(connection.getresponse().read())
        connection.close()
        return len(found)

    yield Kind({"DOCKER_HOST": url, "AGENT_RUNNER_SANDBOX_IMAGE": whole_image()}, count)


@contextmanager
def daytona(root: Path) -> Iterator[Kind]:
    pytest.importorskip("daytona", reason="the extra `daytona` is not installed")
    server, loop = DaytonaServer(root / "daytona"), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="daytona")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(300)
        yield Kind({"DAYTONA_API_KEY": KEY, "DAYTONA_API_URL": server.api_url}, lambda _: server.count)
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(300)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


KINDS: dict[str, Callable[[Path], AbstractContextManager[Kind]]] = {
    "local": local,
    "docker": docker,
    "daytona": daytona,
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    with KINDS[request.param](tmp_path) as made:
        made.environment["AGENT_RUNNER_SANDBOX"] = request.param
        yield made


@pytest.fixture
def stack(kind: Kind, tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path, kind.environment)
    try:
        home.ok("up", "--detach", "--port", "0")
        yield home
    finally:
        _clean_up(home)


def test_the_example_skill_runs_and_the_session_keeps_its_one_sandbox(stack: Home, kind: Kind) -> None:
    pushed = push(stack, EXAMPLES / "text-statistics", "--tag", "stable")["skill"]
    stack.ok("apply", "-f", str(EXAMPLES / "analyst.yaml"))
    script = f"script:{EXAMPLES / 'analyst-script.yaml'}"

    first = stack.run("run", "--agent", "analyst", "--model", script, TEXT)

    assert first.stdout == "The skill has counted; the numbers are above.\n", first.stderr
    found = status(stack)
    assert '{"words": 9, "sentences": 2, "syllables": 13, "reading_ease": 80.1}' in result(found)
    assert [used["hash"] for used in found["run"]["skills"]] == [pushed["status"]["versionHash"]]

    session = re.search(r"session (ses-\w+)", first.stderr)
    assert session is not None
    stack.ok("run", "--session", session[1], "--model", stack.script(AGAIN), "And again?")
    again = status(stack)
    assert result(again).startswith(f"{TEXT}\n")
    assert again["run"]["sandboxId"] == found["run"]["sandboxId"]
    assert kind.count(stack) == 1

    stack.ok("delete", "session", session[1], "--yes")
    deadline = time.monotonic() + WITHIN
    while kind.count(stack):
        assert time.monotonic() < deadline, "the sandbox outlived its session"
        time.sleep(0.1)
