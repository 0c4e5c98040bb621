from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_runner.adapters.sandbox.local.cgroups import DEFAULT_GROUP_LIMITS, Groups, _name_and_parent


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    """What looks like the controllers of version 1, enough to have groups below them."""
    for controller in ("memory", "pids", "cpu"):
        (tmp_path / "groups" / controller).mkdir(parents=True)
        (tmp_path / "groups" / controller / "tasks").touch()
    return tmp_path / "groups"


@pytest.fixture
def bubblewrap(tmp_path: Path) -> Path:
    """A program of that name which stays."""
    copy = tmp_path / "bwrap"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", copy)
    return copy


@pytest.fixture
def orphan(bubblewrap: Path) -> Iterator[int]:
    """A bubblewrap whose parent has ended."""
    shell = ["sh", "-c", '"$0" 600 >/dev/null 2>&1 & echo $!', str(bubblewrap)]
    pid = int(subprocess.run(shell, stdout=subprocess.PIPE, check=True).stdout)
    yield pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)


def group_of(groups: Groups, mount: Path, name: str, pid: int) -> Path:
    (made, *_) = groups._make(name)
    assert made.is_relative_to(mount)
    (made / "cgroup.procs").write_text(f"{pid}\n")
    return made


def ended(pid: int) -> bool:
    found = _name_and_parent(pid)
    return found is None or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_bubblewrap_whose_worker_was_killed_is_ended(tmp_path: Path, mount: Path, orphan: int) -> None:
    deadline = time.monotonic() + 120
    while (found := _name_and_parent(orphan)) is None or found[0] != "bwrap":
        assert time.monotonic() < deadline
    parent = found[1]
    if parent != 1 and (_name_and_parent(parent) or ("", 0))[0] != "systemd":
        pytest.skip("somebody else takes in orphans here")
    groups = Groups(tmp_path, DEFAULT_GROUP_LIMITS, mount)
    group_of(groups, mount, "left", orphan)

    groups.sweep()

    while not ended(orphan):
        assert time.monotonic() < deadline


def test_what_has_its_worker_stays(tmp_path: Path, mount: Path, bubblewrap: Path) -> None:
    with subprocess.Popen([bubblewrap, "600"]) as running:
        groups = Groups(tmp_path, DEFAULT_GROUP_LIMITS, mount)
        group_of(groups, mount, "used", running.pid)
        group_of(groups, mount, "other", os.getpid())
        groups.sweep()
        assert not ended(running.pid)
        running.kill()
