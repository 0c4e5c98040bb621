"""A session's directories on this host, for two kinds of sandboxes that share them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SharedDirectories:
    """Where a session's files are on this host, and which user of it they belong to."""

    workspace: Path
    tmp: Path
    skills: Path
    uid: int
