"""The read-only root of local sandboxes: links to the host's `/usr`, a small `/etc`, mount points.

Every mount point is made here beforehand, because bubblewrap makes missing ones by following links in
trees mounted already (CVE-2026-87766). One skeleton serves all sessions; its name carries a
fingerprint of what it was made from, so that a restart finds it ready and an upgrade makes another.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_VERSION = "2"
"""Raise it when what is made here changes."""

_COPIED = (
    "alternatives",
    "ca-certificates",
    "debian_version",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "nsswitch.conf",
    "os-release",
    "pki/tls/certs",
    "pki/ca-trust/extracted",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/cert.pem",
    "ssl/openssl.cnf",
)
"""What of the host's `/etc` programs need; nothing in it is secret."""

_WRITTEN = {
    "passwd": "root:x:0:0:root:/:/usr/sbin/nologin\nagent:x:1000:1000::/workspace:/bin/bash\n"
    "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "group": "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "hostname": "sandbox\n",
    "resolv.conf": "",
}

_MOUNT_POINTS = ("proc", "dev", "usr", "tmp", "workspace", "bin/skills", "run/ar")
_LINKED_DIRECTORIES = ("lib", "lib32", "lib64", "libx32", "sbin")


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A root directory ready to be mounted, and what must be mounted into it besides `/usr`.

    Attributes:
        binds: (host path, path in the sandbox), read-only.
    """

    path: Path
    binds: Sequence[tuple[str, str]]


def build_skeleton(root: Path, extra_ro_paths: Sequence[Path] = ()) -> Skeleton:
    """Make the skeleton below `root`, or find it there. Blocks for about 0.1 s the first time."""
    extra = [path.absolute() for path in extra_ro_paths]
    binds = [*_host_binds(), *((str(path), str(path)) for path in extra)]
    path = root / f"skeleton-{_fingerprint(binds)}"
    if not path.is_dir():
        # Built aside and renamed, so that a crash leaves none half done; the loser of a race throws away.
        aside = Path(tempfile.mkdtemp(prefix=".skeleton-", dir=root))
        _fill(aside, binds)
        try:
            aside.rename(path)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            if not path.is_dir():
                raise
    return Skeleton(path, binds)


def _host_binds() -> list[tuple[str, str]]:
    """Directories that are real ones on hosts without a merged `/usr`."""
    binds = [(f"/{name}", f"/{name}") for name in _LINKED_DIRECTORIES if _is_real_directory(Path("/", name))]
    if _is_real_directory(Path("/bin")):
        binds.append(("/bin", "/.host/bin"))
    return binds


def _is_real_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _fingerprint(binds: Sequence[tuple[str, str]]) -> str:
    sources = [Path("/usr/bin"), Path("/bin"), *(Path("/etc", name) for name in _COPIED)]
    parts = [_VERSION, repr(binds)]
    for source in sources:
        with suppress(OSError):
            parts.append(f"{source}:{source.stat().st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _fill(root: Path, binds: Sequence[tuple[str, str]]) -> None:
    root.chmod(0o755)
    for name in (*_MOUNT_POINTS, "etc", "var", *(target.lstrip("/") for _, target in binds)):
        _make_directory(root, name)
    # Files, not directories, may be given as extra paths.
    for source, target in binds:
        if Path(source).is_file():
            (root / target.lstrip("/")).rmdir()
            (root / target.lstrip("/")).touch(0o644)
    if not (root / "var/tmp").exists():  # something of the host may be shown below it
        (root / "var/tmp").symlink_to("/tmp")  # noqa: S108 - the sandbox's own
    _link_programs(root)
    for name in _LINKED_DIRECTORIES:
        if Path("/", name).is_symlink():
            (root / name).symlink_to(Path("/", name).readlink())
    _fill_etc(root / "etc")


def _make_directory(root: Path, name: str) -> None:
    path = root
    for part in Path(name).parts:
        path = path / part
        if not path.is_dir():
            path.mkdir()
            path.chmod(0o755)  # whatever the umask


def _link_programs(root: Path) -> None:
    """`/bin` as a directory of links, so that `/bin/skills` can be in it."""
    directory = os.open(root / "bin", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for host, seen_as in (("/usr/bin", "/usr/bin"), ("/bin", "/.host/bin")):
            if seen_as != "/usr/bin" and not _is_real_directory(Path(host)):
                continue
            for name in os.listdir(host):  # noqa: PTH208 - names are all that is wanted
                with suppress(FileExistsError):
                    os.symlink(f"{seen_as}/{name}", name, dir_fd=directory)
    finally:
        os.close(directory)


def _fill_etc(etc: Path) -> None:
    for name in _COPIED:
        source, target = Path("/etc", name), etc / name
        # What the worker may not read, or what changes meanwhile, the sandbox does without.
        with suppress(OSError, shutil.Error):
            if source.is_dir():
                _make_directory(etc, str(Path(name).parent))
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
            elif source.exists():
                _make_directory(etc, str(Path(name).parent))
                shutil.copy2(source, target)
    for name, text in _WRITTEN.items():
        (etc / name).write_text(text)
    for directory, directories, files in os.walk(etc):
        for name in (*directories, *files):
            path = Path(directory, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o644)
