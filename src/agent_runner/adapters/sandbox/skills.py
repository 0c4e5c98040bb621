"""Skills as an archive for a volume."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


def pack_skills(skills: Mapping[str, Path]) -> bytes:
    """A tar archive with a directory per hash, everything root's and read-only for the rest. Blocks."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, directory in skills.items():
            archive.add(directory, arcname=name, filter=_made_plain)
    return buffer.getvalue()


def _made_plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if not (entry.isreg() or entry.isdir() or entry.issym()):
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    executable = entry.isdir() or entry.mode & 0o100
    entry.mode = 0o755 if executable else 0o644
    return entry
