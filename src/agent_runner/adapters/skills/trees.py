"""Extracted skills on disk: `{hash}/` with the files and `{hash}.json` which says what they are.

Both appear by a rename, files first, so that a manifest never speaks of files that are not all there.
Blocking; to be called in a thread.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from agent_runner.domain import archives, skills
from agent_runner.domain.archives import ArchiveLimits, Entry

_LEFT_BEHIND: Final = 3600.0
"""Seconds after which unfinished work is taken for that of a dead process."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one version takes up, and when it was last used (seconds since the epoch)."""

    hash: str
    size: int
    used: float


class SkillTrees:
    """The directory with the trees of all versions."""

    def __init__(self, root: Path, limits: ArchiveLimits) -> None:
        self.root = root
        self._limits = limits
        self._scratch = root / "scratch"
        self._locks = root / "locks"

    def prepare(self) -> None:
        """Make the directories, and remove what dead processes left in them."""
        for directory in (self.root, self._scratch, self._locks):
            directory.mkdir(parents=True, exist_ok=True)
        # Passed through by the users sandboxes run as, never listed by them.
        self.root.chmod(0o711)
        for left in self._scratch.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _LEFT_BEHIND:
                    _remove(left)

    def path(self, hash: str) -> Path:
        return self.root / hash

    def lock(self, hash: str, purpose: str) -> Path:
        return self._locks / f"{hash}.{purpose}"

    def scratch_file(self) -> BinaryIO:
        """A file without a name for an archive on its way."""
        return tempfile.TemporaryFile(dir=self._scratch)

    def intact_of(self, hashes: Iterable[str]) -> set[str]:
        """Those whose files are there as they were extracted, by size, mode and time of change.

        They count as used now.
        """
        found = {hash for hash in hashes if self._intact(hash)}
        for hash in found:
            with suppress(FileNotFoundError):
                os.utime(self._manifest(hash))
        return found

    def _intact(self, hash: str) -> bool:
        try:
            manifest = json.loads(self._manifest(hash).read_bytes())
            root = self.path(hash)
            return all(
                _identity(f"{root}/{name}") == identity for name, identity in manifest["files"].items()
            )
        except (OSError, ValueError, KeyError, AttributeError):
            return False

    def extract(self, hash: str, archive: BinaryIO) -> None:
        """Put the files of a checked archive in place of whatever is there.

        Raises:
            ArtifactError: the archive is not one of a skill; nothing was changed.
        """
        entries = archives.read_entries(archive, self._limits)
        skills.find_skill_md(entries)
        aside = Path(tempfile.mkdtemp(prefix=hash[:12], dir=self._scratch))
        try:
            for entry in entries:
                _write(archive, entry, aside)
            aside.chmod(0o755)
            manifest = _manifest_of(entries, aside)
            self._replace(aside, hash)
        except BaseException:
            _remove(aside)
            raise
        self._store(hash, manifest)

    def usage(self) -> list[Usage]:
        """Every version here, the one not used for longest first."""
        found = []
        for manifest in self.root.glob("*.json"):
            with suppress(OSError, ValueError, KeyError):
                size = json.loads(manifest.read_bytes())["size"]
                found.append(Usage(manifest.stem, size, manifest.stat().st_mtime))
        return sorted(found, key=lambda one: one.used)

    def remove(self, hash: str) -> None:
        """Remove a version; nothing happens when it is not here."""
        # Without its manifest a tree counts as not there.
        self._manifest(hash).unlink(missing_ok=True)
        self._set_aside(hash)

    def _replace(self, aside: Path, hash: str) -> None:
        self._manifest(hash).unlink(missing_ok=True)
        self._set_aside(hash)
        aside.rename(self.path(hash))

    def _set_aside(self, hash: str) -> None:
        gone = self._scratch / f"gone-{secrets.token_hex(8)}"
        with suppress(FileNotFoundError):
            self.path(hash).rename(gone)
            _remove(gone)

    def _store(self, hash: str, manifest: bytes) -> None:
        scratch = self._scratch / f"{hash}-{secrets.token_hex(8)}"
        scratch.write_bytes(manifest)
        scratch.rename(self._manifest(hash))

    def _manifest(self, hash: str) -> Path:
        return self.root / f"{hash}.json"


def _write(archive: BinaryIO, entry: Entry, root: Path) -> None:
    """Write one entry. Its name was checked, and the tree is new and has no links in it."""
    path = root / entry.name
    for directory in _missing(path if entry.is_dir else path.parent, root):
        directory.mkdir()
        directory.chmod(0o755)
    if entry.is_dir:
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, entry.mode), "wb") as file:
        for piece in archives.read_file(archive, entry):
            file.write(piece)
    # The umask took from the mode.
    path.chmod(entry.mode)


def _missing(directory: Path, root: Path) -> Iterator[Path]:
    """Directories to make, outermost first."""
    above = [path for path in (directory, *directory.parents) if path != root and path.is_relative_to(root)]
    return (path for path in reversed(above) if not path.exists())


def _manifest_of(entries: list[Entry], root: Path) -> bytes:
    files = {entry.name: _identity(root / entry.name) for entry in entries if not entry.is_dir}
    size = sum(entry.size for entry in entries)
    return json.dumps({"size": size, "files": files}, separators=(",", ":")).encode()


def _identity(path: Path | str) -> list[int]:
    found = os.lstat(path)
    return [found.st_size, stat.S_IMODE(found.st_mode), found.st_mtime_ns]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
