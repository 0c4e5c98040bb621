"""Skills at Daytona: laid out once, and checked at each turn, for an agent with sudo can alter them."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

_PLACE = "/bin/skills"
_EXTRACT = "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])"

CHECK = """\
import hashlib, os, stat, sys
for name in sys.argv[1:]:
    root, lines = "/bin/skills/" + name, []
    for directory, directories, files in os.walk(root):
        for item in files:
            path = os.path.join(directory, item)
            about = os.lstat(path)
            if stat.S_ISLNK(about.st_mode):
                content = os.readlink(path).encode("utf-8", "surrogateescape")
            else:
                with open(path, "rb") as file:
                    content = file.read()
            shown = os.path.relpath(path, root)
            mode = "l" if stat.S_ISLNK(about.st_mode) else "x" if about.st_mode & 0o100 else "-"
            lines.append(shown + " " + mode + " " + hashlib.sha256(content).hexdigest())
    text = "\\n".join(sorted(lines)).encode("utf-8", "surrogateescape")
    print(name, hashlib.sha256(text).hexdigest())
"""
"""Prints for each hash given what `fingerprint` gives for its directory on this side."""


def fingerprint(directory: Path) -> str:
    """One hash over names, kinds, executable bits and contents of all files. Blocks."""
    lines = []
    for path in directory.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            kind, content = "l", str(path.readlink()).encode("utf-8", "surrogateescape")
        elif stat.S_ISREG(mode):
            kind, content = "x" if mode & 0o100 else "-", path.read_bytes()
        else:
            continue
        lines.append(f"{path.relative_to(directory)} {kind} {hashlib.sha256(content).hexdigest()}")
    return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()


def unpack_script(archive: str, names: list[str]) -> str:
    """A script which puts the uploaded archive's directories in place of what is there."""
    places = " ".join(f"{_PLACE}/{name}" for name in names)
    return f"""\
set -e
as_root=; [ "$(id -u)" = 0 ] || [ -w {_PLACE} ] || as_root="sudo -n"
$as_root mkdir -p {_PLACE}
$as_root chmod -R u+w {places} 2>/dev/null || true
$as_root rm -rf {places}
$as_root python3 -I -c "{_EXTRACT}" {archive} {_PLACE}
$as_root chmod -R a-w {places}
rm -f {archive}
"""
