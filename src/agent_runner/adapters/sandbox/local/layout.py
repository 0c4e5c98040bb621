"""The directories of sessions on disk: `{session id}/{workspace,tmp,skills}`."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from agent_runner.adapters.sandbox.local.accounts import Accounts
from agent_runner.adapters.sandbox.names import check_skill_hash

_REMOVAL_TIMEOUT = 600.0


class Layout:
    """Makes and removes what sessions have below one directory. All methods block."""

    def __init__(self, sessions: Path, accounts: Accounts) -> None:
        self._sessions = sessions
        self._accounts = accounts

    def session_ids(self) -> Sequence[str]:
        try:
            return sorted(path.name for path in self._sessions.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []

    def make(self, name: str, skills: Mapping[str, Path]) -> int:
        """Make a session's directories and skills, or what is missing of them.

        Returns:
            Id of the user the session's commands run as.
        """
        directory = self._sessions / name
        uid = self._owner(name) or self._accounts.claim(name)
        for path, mode, owner in (
            (directory, 0o711, None),
            (directory / "skills", 0o755, None),
            (directory / "tmp", 0o700, uid),
            (directory / "workspace", 0o700, uid),
        ):
            if not path.is_dir():
                path.mkdir(exist_ok=True)
                path.chmod(mode)
            if owner is not None and path.stat().st_uid != owner:
                os.chown(path, owner, owner)
        for skill, source in skills.items():
            _place_skill(source, directory / "skills" / check_skill_hash(skill))
        return uid

    def remove(self, name: str) -> None:
        """Remove all a session has; nothing happens when it has nothing."""
        uid = self._owner(name)
        # Renamed first: from then on the session has nothing here, whatever becomes of the rest.
        with suppress(FileNotFoundError):
            (self._sessions / name).rename(self._sessions / f".gone-{secrets.token_hex(6)}")
        self.sweep()
        if uid:
            self._accounts.release(name, uid)

    def sweep(self) -> None:
        """Remove what earlier removals left when they were cut off."""
        if gone := list(self._sessions.glob(".gone-*")):
            _remove_trees(gone)

    def sweep_probes(self, age: float) -> None:
        """Remove tries of workers that ended during them, and user ids no session has any more."""
        limit = time.time() - age
        for probe in self._sessions.glob(".probe-*"):
            with suppress(FileNotFoundError):
                if probe.stat().st_mtime < limit:
                    self.remove(probe.name)
        self._accounts.sweep(self._sessions, limit)

    def _owner(self, name: str) -> int:
        """The session's user, 0 where it has none of its own yet."""
        if not self._accounts.separate:
            return 0
        try:
            return (self._sessions / name / "workspace").stat().st_uid
        except FileNotFoundError:
            return 0


def make_passable(directory: Path) -> None:
    """Make a directory which session users may go through but not list."""
    directory.mkdir(parents=True, exist_ok=True)
    mode = stat.S_IMODE(directory.stat().st_mode)
    if os.geteuid() == 0 and mode & 0o011 != 0o011:
        directory.chmod(mode | 0o011)


def _place_skill(source: Path, target: Path) -> None:
    """Show a skill's files at the target, by hard links where that works: nothing is copied then.

    The target stands there whole or not at all. Contents never change: its name is their hash.
    """
    if target.is_dir():
        return
    aside = Path(tempfile.mkdtemp(prefix=".placing-", dir=target.parent))
    shutil.copytree(source, aside, symlinks=True, dirs_exist_ok=True, copy_function=_link_or_copy)
    for directory in (aside, *(path for path in aside.rglob("*") if path.is_dir() and not path.is_symlink())):
        directory.chmod(0o755)
    try:
        aside.rename(target)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        if not target.is_dir():
            raise


def _link_or_copy(source: str, target: str, *, follow_symlinks: bool = True) -> str:
    mode = Path(source).lstat().st_mode
    readable = mode & 0o444 == 0o444
    if readable:
        with suppress(OSError):  # another file system, or links not allowed
            os.link(source, target, follow_symlinks=False)
            return target
    shutil.copy2(source, target, follow_symlinks=follow_symlinks)
    if not stat.S_ISLNK(mode):
        # The session's user must be able to read it; whoever may execute it still may.
        executable = 0o111 if mode & 0o100 else 0
        Path(target).chmod(0o444 | executable)
    return target


def _remove_trees(paths: Iterable[Path]) -> None:
    # By `rm`, which takes trees deeper than Python's recursion limit. The agent may have taken away
    # its own permissions on directories; root does not mind, everybody else gets them back first.
    names = [str(path) for path in paths]
    if os.geteuid() != 0:
        _run_quietly(["chmod", "-R", "u+rwX", "--", *names])
    _run_quietly(["rm", "-rf", "--one-file-system", "--", *names])


def _run_quietly(command: Sequence[str]) -> None:
    subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_REMOVAL_TIMEOUT, check=False
    )
