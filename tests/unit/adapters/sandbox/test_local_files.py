"""The skeleton, skills laid out, user ids, names, and views of closed directories."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runner.adapters.sandbox.local.accounts import Accounts
from agent_runner.adapters.sandbox.local.layout import Layout
from agent_runner.adapters.sandbox.local.mounts import closed_ancestor, open_view
from agent_runner.adapters.sandbox.local.skeleton import build_skeleton
from agent_runner.adapters.sandbox.names import check_environment, check_session_id, is_below, sandbox_path
from agent_runner.errors import InvalidRequestError

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


def test_a_skeleton_is_made_once_and_another_for_other_paths(tmp_path: Path) -> None:
    first = build_skeleton(tmp_path)
    stamp = first.path.stat().st_mtime_ns

    assert build_skeleton(tmp_path).path == first.path
    assert first.path.stat().st_mtime_ns == stamp
    assert build_skeleton(tmp_path, [tmp_path]).path != first.path
    assert (first.path / "bin/skills").is_dir()
    assert (first.path / "bin/bash").readlink() == Path("/usr/bin/bash")
    assert "agent:x:1000" in (first.path / "etc/passwd").read_text()
    assert not (first.path / "etc/shadow").exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_paths_of_the_host_below_var_tmp_can_be_shown(tmp_path: Path) -> None:
    shown = build_skeleton(tmp_path, [Path("/var/tmp/python")]).path
    assert (shown / "var/tmp/python").is_dir()
    assert (build_skeleton(tmp_path).path / "var/tmp").readlink() == Path("/tmp")


def test_nothing_in_a_skeleton_can_be_written_by_others(tmp_path: Path) -> None:
    for directory, _, files in os.walk(build_skeleton(tmp_path).path):
        assert Path(directory).stat().st_mode & 0o022 == 0
        for name in files:
            path = Path(directory, name)
            assert path.is_symlink() or path.stat().st_mode & 0o022 == 0


def test_skills_are_readable_for_all_whatever_the_cache_is(tmp_path: Path) -> None:
    skill = tmp_path / "skill"
    (skill / "private").mkdir(parents=True, mode=0o700)
    (skill / "private/run.sh").write_text("x")
    (skill / "private/run.sh").chmod(0o700)
    (skill / "open.md").write_text("y")
    (skill / "open.md").chmod(0o644)
    (tmp_path / "sessions").mkdir()
    layout = Layout(tmp_path / "sessions", Accounts(tmp_path))

    layout.make("ses-1", {"a" * 64: skill})
    layout.make("ses-1", {"a" * 64: skill})

    placed = tmp_path / "sessions/ses-1/skills" / ("a" * 64)
    assert (placed / "private").stat().st_mode & 0o777 == 0o755
    assert (placed / "private/run.sh").stat().st_mode & 0o777 == 0o555
    assert (placed / "open.md").stat().st_ino == (skill / "open.md").stat().st_ino
    assert (skill / "private/run.sh").stat().st_mode & 0o777 == 0o700
    layout.remove("ses-1")
    assert layout.session_ids() == []
    assert (skill / "open.md").read_text() == "y"


def test_a_tree_deeper_than_recursion_goes_is_removed(tmp_path: Path) -> None:
    (tmp_path / "sessions").mkdir()
    layout = Layout(tmp_path / "sessions", Accounts(tmp_path))
    layout.make("ses-1", {})
    descriptor = os.open(tmp_path / "sessions/ses-1/workspace", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=descriptor)
        deeper = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = deeper
    os.close(descriptor)

    layout.remove("ses-1")

    assert list((tmp_path / "sessions").iterdir()) == []


@root_only
def test_user_ids_are_each_sessions_own_until_released(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path)
    ids = {name: accounts.claim(name) for name in ("a", "b", "c")}

    assert len(set(ids.values())) == 3
    assert Accounts(tmp_path).claim("a") == ids["a"]
    accounts.release("b", ids["a"])  # not b's: stays
    assert accounts.claim("a") == ids["a"]
    accounts.release("a", ids["a"])
    assert str(ids["a"]) not in {path.name for path in (tmp_path / "uids").iterdir()}


@root_only
def test_a_view_lets_others_through_without_the_host_seeing_it(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "inner").mkdir(parents=True)
    (closed / "inner/file").write_text("seen")
    closed.chmod(0o700)
    assert closed_ancestor(closed / "inner") is not None

    view = open_view([closed / "inner"])
    assert view is not None
    command = ["setpriv", "--reuid=200001", "--clear-groups", "cat", str(closed / "inner/file")]
    inside = subprocess.run(
        ["nsenter", f"--mount=/proc/self/fd/{view}", *command], pass_fds=[view], capture_output=True
    )
    outside = subprocess.run(command, capture_output=True)
    os.close(view)

    assert inside.stdout == b"seen"
    assert outside.returncode != 0


def test_an_open_path_needs_no_view() -> None:
    assert open_view([Path("/usr/bin")]) is None


@given(st.text(min_size=1))
def test_a_path_in_the_sandbox_is_absolute_and_normal(path: str) -> None:
    try:
        normal = sandbox_path(path)
    except ValueError:
        assert "\0" in path
        return
    assert normal.startswith("/")
    assert ".." not in normal.split("/")
    assert sandbox_path(normal) == normal


def test_names_that_only_begin_alike_are_not_below() -> None:
    assert is_below("/workspace/x", "/workspace")
    assert is_below("/workspace", "/workspace")
    assert not is_below("/workspacex", "/workspace")


@given(st.text())
def test_an_id_is_safe_as_a_directorys_name_or_refused(value: str) -> None:
    try:
        checked = check_session_id(value)
    except InvalidRequestError:
        return
    assert Path(checked).name == checked
    assert not checked.startswith(".")


def test_variables_are_checked_by_name_and_size() -> None:
    for env in ({"": "x"}, {"A=B": "x"}, {"A": "x\0"}, {"A": "x" * 130_000}, {"A\0": "x"}):
        with pytest.raises(InvalidRequestError):
            check_environment(env)
    with pytest.raises(InvalidRequestError, match="all together"):
        check_environment({f"V{n}": "x" * 100_000 for n in range(20)})
    assert check_environment({"MY-VAR": "x", "B": "a=b\n"})
