"""A folder into a skill's zip: the same content gives the same bytes."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO, Final

IGNORE_FILE: Final = ".skillignore"
IGNORED: Final = (
    *(".git", ".hg", ".svn", "node_modules", ".venv", "venv", "__pycache__", ".pytest_cache"),
    *(".mypy_cache", ".ruff_cache", ".idea", ".vscode", ".DS_Store", "Thumbs.db", ".Python"),
    *(".env", ".env.*", "*.pyc", "*.pyo", "*.pyd", "*.so", "*.dylib", "*.dll", "*.class"),
    *("*.log", "*.swp", "*.swo", "*~", IGNORE_FILE),
)
"""Left out of every skill, unless `.skillignore` takes it in again with `!`."""

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_PIECE: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class PackedFile:
    """One file to go into the zip."""

    name: str
    path: Path
    size: int
    executable: bool


@dataclass(frozen=True, slots=True)
class Folder:
    """What is in a folder.

    Attributes:
        files: sorted by name.
        left_out: (name, why) of what does not go in; directories end in `/`.
    """

    files: Sequence[PackedFile]
    left_out: Sequence[tuple[str, str]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


class IgnoreRules:
    """Patterns as in `.gitignore`; the last one that fits decides."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._rules = [rule for pattern in patterns if (rule := _rule(pattern)) is not None]

    def ignores(self, name: str, is_dir: bool) -> bool:
        """Whether a path from the folder on, its parts joined by `/`, is left out."""
        ignored = False
        for takes_in, only_dirs, expression in self._rules:
            if (is_dir or not only_dirs) and expression.fullmatch(name):
                ignored = not takes_in
        return ignored


def read_folder(folder: Path) -> Folder:
    """List what goes into the zip. Links and special files never do: they cannot be in a skill."""
    patterns = list(IGNORED)
    ignore_file = folder / IGNORE_FILE
    if ignore_file.is_file():
        patterns += ignore_file.read_text(encoding="utf-8").splitlines()
    files: list[PackedFile] = []
    left_out: list[tuple[str, str]] = []
    _walk(folder, "", IgnoreRules(patterns), files, left_out)
    return Folder(sorted(files, key=lambda file: file.name), sorted(left_out))


def _walk(
    folder: Path,
    prefix: str,
    rules: IgnoreRules,
    files: list[PackedFile],
    left_out: list[tuple[str, str]],
) -> None:
    with os.scandir(folder / prefix) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name, found = f"{prefix}{entry.name}", entry.stat(follow_symlinks=False)
            is_dir = stat.S_ISDIR(found.st_mode)
            if rules.ignores(name, is_dir):
                left_out.append((f"{name}/" if is_dir else name, "ignored"))
            elif is_dir:
                _walk(folder, f"{name}/", rules, files, left_out)
            elif stat.S_ISREG(found.st_mode):
                executable = bool(found.st_mode & 0o111)
                files.append(PackedFile(name, Path(entry.path), found.st_size, executable))
            else:
                left_out.append((name, "a link" if stat.S_ISLNK(found.st_mode) else "no regular file"))


def write_zip(files: Sequence[PackedFile], target: IO[bytes], packed: Callable[[int], None]) -> None:
    """Write the zip: sorted, without times, with nothing of a file's mode but whether it is executable.

    Args:
        packed: told of bytes of the files as they go in.
    """
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for file in files:
            info = zipfile.ZipInfo(file.name, _EPOCH)
            info.create_system = 3  # Unix, so that modes mean something wherever this runs
            info.external_attr = (stat.S_IFREG | (0o755 if file.executable else 0o644)) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            info.file_size = file.size
            with file.path.open("rb") as source, archive.open(info, "w") as entry:
                for piece in _pieces(source):
                    entry.write(piece)
                    packed(len(piece))


def hash_of(file: BinaryIO) -> str:
    """SHA-256 of a whole file."""
    file.seek(0)
    seen = hashlib.sha256()
    for piece in _pieces(file):
        seen.update(piece)
    return seen.hexdigest()


async def chunks_of(file: BinaryIO, sent: Callable[[int], None]) -> AsyncIterator[bytes]:
    """The bytes of a file from its beginning; `sent` is told of each piece when the next is asked for."""
    file.seek(0)
    for piece in _pieces(file):
        yield piece
        sent(len(piece))


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def _rule(pattern: str) -> tuple[bool, bool, re.Pattern[str]] | None:
    """(takes in again, directories alone, expression for whole paths); None for blanks and comments."""
    text = pattern.rstrip()
    if not text or text.startswith("#"):
        return None
    takes_in = text.startswith("!")
    text = text[1:] if takes_in or text.startswith("\\") else text
    only_dirs = text.endswith("/")
    text = text.rstrip("/")
    anchored = "/" in text
    expression = _expression(text.lstrip("/"))
    return takes_in, only_dirs, re.compile(expression if anchored else f"(?:.*/)?{expression}", re.DOTALL)


def _expression(glob: str) -> str:
    """A regular expression for a glob where `*` and `?` stop at `/` and `**` does not."""
    parts = {"/**/": "/(?:.*/)?", "**/": "(?:.*/)?", "/**": "/.*", "*": "[^/]*", "?": "[^/]"}
    found, at = "", 0
    for match in re.finditer(r"/\*\*/|\*\*/|/\*\*|\*|\?|\[!?[^\]/]+\]", glob):
        found += re.escape(glob[at : match.start()])
        token = match.group()
        if token.startswith("["):
            inner = token[1:-1].replace("\\", r"\\")
            found += f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"
        else:
            found += parts[token]
        at = match.end()
    return found + re.escape(glob[at:])
