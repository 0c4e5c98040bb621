"""Files of a session on the command line: listed, brought in, taken out."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from acceptance.test_cli import WITHIN, Home, up  # noqa: F401 (a fixture)

LEAVES = """\
turns:
  - steps:
      - calls:
          - name: execute
            args:
              command: |
                mkdir -p out && echo found > out/report.txt && printf 'two' > 'a
                b' && ln -s /etc/passwd planted
      - text: "Left."
  - steps:
      - calls: [{name: execute, args: {command: "wc -c < given/big.bin"}}]
      - text: "Counted."
"""


@pytest.fixture(scope="module")
def session(up: Home) -> Iterator[str]:  # noqa: F811
    """A session in which an agent has left files."""
    up.ok("run", "go", "--model", up.script(LEAVES))
    yield str(up.json("get", "session", "latest")["metadata"]["id"])  # type: ignore[index]


def piped(up: Home, data: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:  # noqa: F811
    command = [sys.executable, "-m", "agent_runner", *arguments]
    return subprocess.run(
        command, cwd=up.path, env=up.environment, input=data, capture_output=True, timeout=WITHIN, check=False
    )


def test_a_directory_is_shown_as_table_and_as_json(up: Home, session: str) -> None:  # noqa: F811
    lines = up.ok("session", "files", session).splitlines()
    assert lines[0].split() == ["SIZE", "AGE", "PATH"]
    assert [line.split()[-1] for line in lines[1:]] == [
        "/workspace/a\\nb",
        "/workspace/out/",
        "/workspace/planted",
    ]

    items = up.json("session", "files", "latest", "out")["items"]
    rows = [
        json.loads(line) for line in up.ok("session", "files", session, "out", "-o", "jsonl").splitlines()
    ]

    assert items == rows
    assert [(row["path"], row["sizeBytes"]) for row in rows] == [("/workspace/out/report.txt", "6")]


def test_files_are_copied_out_whatever_their_name(up: Home, session: str) -> None:  # noqa: F811
    assert up.ok("cp", f"{session}:out/report.txt", "-") == "found\n"
    up.ok("cp", f"{session}:/workspace/out/report.txt", ".")
    assert (up.path / "report.txt").read_text() == "found\n"
    up.ok("cp", f"{session}:/workspace/a\nb", "named")
    assert (up.path / "named").read_text() == "two"


def test_a_large_file_goes_in_and_comes_out_the_same(up: Home, session: str) -> None:  # noqa: F811
    data = os.urandom(20 << 20)
    (up.path / "big.bin").write_bytes(data)

    up.ok("cp", "big.bin", f"{session}:/workspace/given/")
    up.ok("run", "count", "--session", session, "--model", up.script(LEAVES))
    out = piped(up, b"", "cp", f"{session}:given/big.bin", "-")

    assert hashlib.sha256(out.stdout).digest() == hashlib.sha256(data).digest()
    calls = up.json("get", "execution", "latest")["status"]["toolCalls"]  # type: ignore[index]
    assert str(len(data)) in calls[0]["result"]


def test_a_pipe_goes_in(up: Home, session: str) -> None:  # noqa: F811
    done = piped(up, b"from a pipe", "cp", "-", f"{session}:/workspace/piped.txt")

    assert done.returncode == 0, done.stderr
    assert up.ok("cp", "latest:piped.txt", "-") == "from a pipe"


@pytest.mark.parametrize(
    ("code", "words", "source", "target"),
    [
        (5, "was not found", "SESSION:missing", "gone"),
        (5, "was not found", "SESSION:planted", "gone"),
        (2, "outside", "SESSION:/etc/passwd", "gone"),
        (2, "outside", "SESSION:../../etc/passwd", "gone"),
        (2, "directory", "SESSION:out", "gone"),
        (2, "outside", "report.txt", "SESSION:/etc/cron.d/mine"),
        (2, "must be SESSION:PATH", "report.txt", "other.txt"),
        (1, "No such file", "never-there", "SESSION:x"),
        (5, "not found", "ses-00000000000000000000000000:x", "gone"),
    ],
)
def test_what_cannot_be_copied_is_told(
    up: Home,  # noqa: F811
    session: str,
    code: int,
    words: str,
    source: str,
    target: str,
) -> None:
    (up.path / "report.txt").write_text("found\n")
    done = up.run("cp", source.replace("SESSION", session), target.replace("SESSION", session))

    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (up.path / "gone").exists()
    assert not list(up.path.glob(".gone*"))
