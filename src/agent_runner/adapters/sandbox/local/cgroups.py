"""Limits over all processes of a session together, where this process may make control groups.

Limits per process (`limits.py`) hold everywhere; these come on top where groups are ours to make: in
version 1 hierarchies which root can write, or below a version 2 group that systemd delegated to the
worker (`Delegate=yes`, with `DelegateSubgroup=`, for the kernel wants no process beside the groups).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_PERIOD = 100_000
"""Microseconds over which processor time is counted."""

JOIN = 'for g in $1; do echo 0 > "$g/cgroup.procs"; done 2>/dev/null; shift; exec "$@"'
"""A shell's words, with groups and a command as arguments: enter the groups, then be the command. A group
that went away meanwhile does not keep the command from running: its limits come on top of others."""


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """What all commands of a session may use together.

    Attributes:
        memory: bytes, the cache of files included.
        processes: processes and threads.
        cpus: processors.
    """

    memory: int = 4 << 30
    processes: int = 512
    cpus: float = 2.0


DEFAULT_GROUP_LIMITS = GroupLimits()


class Groups:
    """Makes and removes the control groups of sessions.

    Each takes a tenth of a millisecond, but the kernel has one lock for all groups and may hold it for
    tens of them while a process enters another one.
    """

    def __init__(self, owner: Path, limits: GroupLimits, mount: Path = _MOUNT) -> None:
        """`owner` tells apart several installations on one host: each removes its own groups only."""
        self._prefix = f"agent-runner-{hashlib.sha256(str(owner).encode()).hexdigest()[:8]}-"
        self._bases = _version_2(mount, limits) or _version_1(mount, limits)
        self._made: set[str] = set()
        # One thread and no lock: a session's groups are removed before its next command makes them anew.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cgroups")

    @property
    def available(self) -> bool:
        return bool(self._bases)

    async def make(self, name: str) -> Sequence[Path]:
        """The session's groups, made if need be; none where that does not work after all."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._make, name)

    async def remove(self, name: str) -> None:
        """Remove the session's groups, if no process that has not quite ended keeps them."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._remove, name)

    def _make(self, name: str) -> Sequence[Path]:
        groups = [base / f"{self._prefix}{name}" for base in self._bases]
        self._made.add(name)
        try:
            for group, files in zip(groups, self._bases.values(), strict=True):
                group.mkdir(exist_ok=True)
                for file, value in files.items():
                    (group / file).write_text(value)
        except OSError:
            self._remove(name)
            return []
        return groups

    def _remove(self, name: str) -> bool:
        gone = True
        for base in self._bases:
            try:
                (base / f"{self._prefix}{name}").rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        if gone:
            self._made.discard(name)
        return gone

    def remove_surely(self, names: Iterable[str] | None = None) -> None:
        """Remove groups, all made here if none are named; blocks half a second for processes to end."""
        for name in tuple(self._made if names is None else names):
            for _ in range(50):
                if self._remove(name):
                    break
                time.sleep(0.01)

    def sweep(self) -> None:
        """Remove what killed workers left. A group in use stays; one about to be is made again, or missed.

        A worker that is killed just as it begins a command may leave the inner one of two bubblewraps,
        which waits for the outer one for ever. Such ones are ended. Blocks.
        """
        for base in self._bases:
            for group in base.glob(f"{self._prefix}*"):
                with suppress(OSError):
                    _end_orphans(group)
                    group.rmdir()


def _end_orphans(group: Path) -> None:
    if os.getpid() == 1:  # whose own commands would look like orphans
        return
    for line in (group / "cgroup.procs").read_text().split():
        if _is_orphan(int(line)):
            with suppress(ProcessLookupError):
                os.kill(int(line), signal.SIGKILL)


def _is_orphan(pid: int) -> bool:
    """Whether it is a bubblewrap whose parent is gone: a worker, or the outer one of the two, is missing."""
    found = _name_and_parent(pid)
    if found is None or found[0] != "bwrap":
        return False
    parent = found[1]
    return parent == 1 or (_name_and_parent(parent) or ("", 0))[0] == "systemd"


def _name_and_parent(pid: int) -> tuple[str, int] | None:
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return None  # it has ended
    return name, int(rest.split()[1])


def _version_1(mount: Path, limits: GroupLimits) -> Mapping[Path, Mapping[str, str]]:
    wanted = {
        mount / "memory": {"memory.limit_in_bytes": str(limits.memory)},
        mount / "pids": {"pids.max": str(limits.processes)},
        mount / "cpu": {
            "cpu.cfs_period_us": str(_PERIOD),
            "cpu.cfs_quota_us": str(int(limits.cpus * _PERIOD)),
        },
    }
    return {
        base: files
        for base, files in wanted.items()
        if (base / "tasks").exists() and os.access(base, os.W_OK)
    }


def _version_2(mount: Path, limits: GroupLimits) -> Mapping[Path, Mapping[str, str]]:
    base = _delegated(mount)
    if base is None:
        return {}
    try:
        (base / "cgroup.subtree_control").write_text("+memory +pids +cpu")
    except OSError:
        return {}
    files = {
        "memory.max": str(limits.memory),
        "pids.max": str(limits.processes),
        "cpu.max": f"{int(limits.cpus * _PERIOD)} {_PERIOD}",
    }
    return {base: files}


def _delegated(mount: Path) -> Path | None:
    """The group systemd handed over, which is this process's own or the one above."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                own = mount / line[3:].lstrip("/")
                for group in (own, own.parent):
                    if _is_marked(group) and not (group / "cgroup.procs").read_text().strip():
                        return group
    return None


def _is_marked(group: Path) -> bool:
    try:
        return os.getxattr(group, "user.delegate") == b"1"
    except OSError:
        return False
