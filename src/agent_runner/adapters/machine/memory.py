"""How full memory is: that of the machine, or of the control group where one has a limit of its own."""

from __future__ import annotations

from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_OF_THIS_PROCESS = Path("/proc/self/cgroup")


def used_share() -> float:
    """From 0 to 1, of whatever is fuller. What the kernel would give back, such as caches, counts as free."""
    return max(psutil.virtual_memory().percent / 100, _used_of_group(_own_group()))


def _own_group() -> Path | None:
    """The folder of this process's control group; None without control groups of version 2."""
    try:
        lines = _OF_THIS_PROCESS.read_text().splitlines()
    except OSError:
        return None
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    return None if path is None else _GROUPS / path.lstrip("/")


def _used_of_group(group: Path | None, top: Path = _GROUPS) -> float:
    """The share used in the group or one above it, whichever is fullest; 0 without any limit."""
    if group is None:
        return 0.0
    chain = [group, *(parent for parent in group.parents if parent.is_relative_to(top))]
    return max(map(_share_of, chain))


def _share_of(group: Path) -> float:
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return (used - int(stat["inactive_file"])) / int(limit) if limit != "max" else 0.0
    except (OSError, ValueError, KeyError, ZeroDivisionError):
        return 0.0  # without such files, as the topmost one, or not to be read: no limit we know
