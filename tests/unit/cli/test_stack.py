from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from unit.cli.conftest import Command

from agent_runner.cli import _stack
from agent_runner.cli._errors import CommandError
from agent_runner.errors import SettingsError


def write_state(data_dir: Path, pid: int) -> None:
    data_dir.mkdir(exist_ok=True)
    _stack.state_path(data_dir).write_text(json.dumps({"pid": pid, "address": "127.0.0.1:9", "new": 1}))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"address": "a"}', "null"])
def test_a_broken_state_is_no_stack(tmp_path: Path, text: str) -> None:
    _stack.state_path(tmp_path).write_text(text)

    assert _stack.running(tmp_path) is None


def test_a_state_without_its_process_is_no_stack(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    write_state(tmp_path, ended.pid)
    assert _stack.running(tmp_path) is None

    # Its number in use by something else is not enough.
    other = subprocess.Popen(["sleep", "60"])
    try:
        write_state(tmp_path, other.pid)
        assert _stack.running(tmp_path) is None
    finally:
        other.kill()
        other.wait()


def test_a_state_with_its_process_is_the_stack_whatever_else_it_says(tmp_path: Path) -> None:
    program = "import sys; print(1, flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", program, "agent-runner"], stdin=-1, stdout=-1)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        write_state(tmp_path, process.pid)
        state = _stack.running(tmp_path)
        assert state is not None
        assert (state.pid, state.address, state.web) == (process.pid, "127.0.0.1:9", "")
    finally:
        process.communicate()


def test_stopping_what_does_not_listen_takes_force(tmp_path: Path) -> None:
    program = (
        "import signal; signal.signal(15, lambda *_: None); print(1, flush=True)\nwhile 1: signal.pause()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "agent-runner"], stdout=-1, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    threading.Thread(target=process.wait).start()

    forced = _stack.stop_process(process.pid, wait=_stack.gone(process.pid), within=timedelta(seconds=0.2))

    assert forced
    assert process.wait(120) == -9
    process.stdout.close()


def test_what_fails_to_start_is_told_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    starting = _stack.spawn(tmp_path, ["--listen", "nonsense"])

    with pytest.raises(CommandError, match="exit code 2") as caught:
        starting.wait()

    assert "listen" in caught.value.lines[0]
    # As the same mistake is in the foreground.
    assert (caught.value.exit_code, caught.value.code) == (2, "INVALID_ARGUMENT")


def test_nobody_is_waited_for_who_is_not_there(tmp_path: Path) -> None:
    assert _stack.wait_for_other(tmp_path) is None


def test_a_data_directory_in_the_way_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with (
        pytest.raises(SettingsError, match="file/data cannot be written to"),
        _stack.ensure_running(tmp_path / "file" / "data", lambda _: None),
    ):
        pass


def test_a_data_directory_that_is_a_file_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(SettingsError, match="cannot be written to: It is a file"):
        _stack.spawn(tmp_path / "file", [])


@pytest.mark.parametrize("taken", ["logs", "stack.users"])
def test_a_data_directory_that_takes_nothing_more_is_told_as_a_setting(tmp_path: Path, taken: str) -> None:
    # As on a disk that is read-only; whoever runs the tests may write wherever they like.
    (tmp_path / taken).symlink_to("/proc/self/nothing")

    with (
        pytest.raises(SettingsError, match=r"AGENT_RUNNER_DATA_DIR=.* cannot be written to"),
        _stack.ensure_running(tmp_path, lambda _: None),
    ):
        pass


def test_the_log_is_shown_from_its_end_and_followed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"{n}\n" for n in range(5)))
    assert list(_stack.follow(log, tail=2, keep_on=False)) == ["3\n", "4\n"]
    assert len(list(_stack.follow(log, tail=-1, keep_on=False))) == 5

    lines = _stack.follow(log, tail=1, keep_on=True)
    assert next(lines) == "4\n"
    with log.open("a") as more:
        more.write("5\n")
    assert next(lines) == "5\n"
    log.write_text("new\n")  # as when it is moved away and begun again
    assert next(lines) == "new\n"


def test_without_a_stack_there_is_nothing_to_stop_and_no_log(offline: Command) -> None:
    down = offline("down")
    assert (down.code, down.err) == (0, "No stack runs here.\n")
    logs = offline("logs")
    assert logs.code == 5
    assert "agent-runner up --detach" in logs.err
    # Not the usual address: whoever runs the tests may have a stack there.
    assert offline("status", "--address", "127.0.0.1:9").code == 7
