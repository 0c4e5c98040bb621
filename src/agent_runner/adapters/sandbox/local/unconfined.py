"""Sandboxes which isolate nothing: the host's own tools, for people who want just that.

Bubblewrap here only gives the session the paths it has in every kind (`/workspace`, `/bin/skills`) and
a process tree of its own, so that all of it ends with the command. The worker's variables are kept
away; its files, its network and its rights are not.
"""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent_runner.adapters.sandbox.local.accounts import Accounts
from agent_runner.adapters.sandbox.local.layout import Layout
from agent_runner.adapters.sandbox.local.provider import LocalProvider, Prepared
from agent_runner.adapters.sandbox.local.sandbox import Wrapping
from agent_runner.adapters.sandbox.local.skeleton import Skeleton

_PASSED_ON = re.compile(r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_[A-Z]+|TZ|TERM")
"""Variables a host tool needs to be at home. Everything else may be a secret."""

_MADE_ELSEWHERE = {"bin", "dev", "proc", "tmp", "usr", "workspace", "lost+found"}


@dataclass(frozen=True, slots=True)
class HostView:
    """`Wrapping` which shows the whole host, writable, with the session's directories added."""

    program: str
    skeleton: Skeleton
    session: Path
    view: None = None

    async def launcher(self, arguments: int, inner: Sequence[str]) -> list[str]:
        return [self.program, "--args", str(arguments), "--", *inner]

    async def rest(self) -> None:
        return None

    def options(self, *, seccomp: int, status: int, cwd: str, env: Mapping[str, str]) -> list[str]:
        mounts = ["--ro-bind", str(self.skeleton.path), "/", "--dev-bind", "/usr", "/usr"]
        for source, target in self.skeleton.binds:
            mounts += ["--dev-bind", source, target]
        mounts += ["--dev-bind", "/dev", "/dev", "--proc", "/proc"]
        mounts += ["--ro-bind", str(self.session / "skills"), "/bin/skills"]
        mounts += ["--bind", str(self.session / "tmp"), "/tmp"]  # noqa: S108 - the session's own
        mounts += ["--bind", str(self.session / "workspace"), "/workspace"]
        variables = [word for name, value in env.items() for word in ("--setenv", name, value)]
        return [
            *("--unshare-pid", "--die-with-parent", "--new-session"),
            *mounts,
            *("--chdir", cwd, "--clearenv", *variables),
            *("--json-status-fd", str(status)),
        ]


class UnconfinedProvider(LocalProvider):
    """`SandboxProvider` without isolation, below `root/sessions/{session id}`."""

    kind = "unconfined"

    def __init__(self, root: Path, *, environ: Mapping[str, str] | None = None) -> None:
        """`environ` is what the variables of host tools are taken from; the process's by default."""
        directories = [
            path
            for path in sorted(Path("/").iterdir())
            if path.is_dir()
            and not path.is_symlink()
            and path.name not in _MADE_ELSEWHERE
            # Real directories of programs and libraries are in every skeleton.
            and not re.fullmatch(r"lib\w*|sbin", path.name)
        ]
        super().__init__(root, extra_ro_paths=directories)
        self._accounts = Accounts(self._root, separate=False)
        self._layout = Layout(self._sessions, self._accounts)
        taken = os.environ if environ is None else environ
        passed = {name: value for name, value in taken.items() if _PASSED_ON.fullmatch(name)}
        self._environment = {"LANG": "C.UTF-8", "TERM": "dumb", **passed, "TMPDIR": "/tmp"}  # noqa: S108
        self._warnings = (
            f"This session's commands are not isolated: they run on the host as {_user()}, "
            "with its files and its network.",
        )

    def _wrapping(self, prepared: Prepared, directory: Path, uid: int) -> Wrapping:
        return HostView(prepared.program, prepared.skeleton, directory)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.geteuid()}"
