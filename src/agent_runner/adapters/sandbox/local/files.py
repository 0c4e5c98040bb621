"""A session's files from the host's side, safe against whatever the agent planted in them.

Everything is opened with `openat2`, the session's directory standing for `/`; what was opened is
then asked for its real path, which must be in `workspace`, `tmp` or (to read) `skills`.
"""

from __future__ import annotations

import errno
import os
import posixpath
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agent_runner.adapters.sandbox.local.openat2 import open_beneath
from agent_runner.adapters.sandbox.names import SKILLS, TMP, WORKSPACE, is_below, sandbox_path
from agent_runner.ports.sandboxes import FileEntry, FileProblem

_CHUNK = 1 << 20

_PROBLEMS = {
    errno.ENOENT: FileProblem.NOT_FOUND,
    errno.EACCES: FileProblem.DENIED,
    errno.EPERM: FileProblem.DENIED,
    errno.EROFS: FileProblem.DENIED,
    errno.EXDEV: FileProblem.DENIED,
    errno.EISDIR: FileProblem.IS_DIRECTORY,
    errno.EFBIG: FileProblem.TOO_LARGE,
    errno.ENOSPC: FileProblem.NO_SPACE,
    errno.EDQUOT: FileProblem.NO_SPACE,
}


def problem_of(error: OSError | ValueError) -> FileProblem:
    """The port's word for an error; what cannot be a file's path at all is `INVALID_PATH`."""
    if isinstance(error, OSError) and error.errno is not None:
        return _PROBLEMS.get(error.errno, FileProblem.INVALID_PATH)
    return FileProblem.INVALID_PATH


class SessionFiles:
    """The files of one session. All methods block, for about 0.2 ms with small files.

    They raise OSError, with EACCES for what is outside of the session's files, or ValueError for
    what cannot be a path; `problem_of` translates.
    """

    def __init__(self, directory: Path, uid: int) -> None:
        """`directory` holds `workspace`, `tmp` and `skills`; files written belong to `uid`."""
        self._directory = directory
        self._uid = uid

    def read(self, path: str, limit: int) -> bytes:
        with self.open_file(path) as descriptor:
            if os.fstat(descriptor).st_size > limit:
                raise OSError(errno.EFBIG, "too large", path)
            chunks = list(self.chunks(descriptor, limit + 1))
            if sum(map(len, chunks)) > limit:
                raise OSError(errno.EFBIG, "too large", path)
            return b"".join(chunks)

    @contextmanager
    def open_file(self, path: str) -> Iterator[int]:
        """A descriptor of a regular file to read from."""
        with self._root() as root:
            descriptor = open_beneath(root, _inside(path), os.O_RDONLY)
        try:
            self._confine(descriptor, (WORKSPACE, TMP, SKILLS))
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise OSError(errno.EISDIR, "is a directory", path)
            if not stat.S_ISREG(mode):
                raise OSError(errno.EINVAL, "is no regular file", path)
            yield descriptor
        finally:
            os.close(descriptor)

    @staticmethod
    def chunks(descriptor: int, limit: int, size: int = _CHUNK) -> Iterator[bytes]:
        """What can be read, up to `limit` bytes: the file may be growing."""
        while limit > 0 and (data := os.read(descriptor, min(size, limit))):
            limit -= len(data)
            yield data

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole or not at all, making its parent directories."""
        with self.replacing(path) as descriptor:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]

    @contextmanager
    def replacing(self, path: str) -> Iterator[int]:
        """A new file to write to, which takes the path's place when the block ends well.

        A link is followed, inside the sandbox, to the file it names. A file replaced hands on its mode.
        """
        with self._root() as root:
            target = self._real_target(root, path)
            parent = self._open_parent(root, posixpath.dirname(target))
        name = posixpath.basename(target)
        aside = f".{name[:32]}.{secrets.token_hex(6)}~"
        try:
            mode = _mode_to_keep(parent, name)
            descriptor = os.open(
                aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=parent
            )
            try:
                try:
                    yield descriptor
                    self._give(descriptor)
                    os.fchmod(descriptor, mode)
                finally:
                    os.close(descriptor)
                os.rename(aside, name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                with suppress(OSError):
                    os.unlink(aside, dir_fd=parent)
                raise
        finally:
            os.close(parent)

    def entries(self, path: str) -> list[FileEntry]:
        """One directory by name; links are not followed, and names not in UTF-8 shown as well as can be."""
        with self._root() as root:
            descriptor = open_beneath(root, _inside(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            shown = self._confine(descriptor, (WORKSPACE, TMP, SKILLS))
            found = [_entry(shown, item) for item in os.scandir(descriptor)]
        finally:
            os.close(descriptor)
        return sorted((entry for entry in found if entry), key=lambda entry: entry.path)

    @contextmanager
    def _root(self) -> Iterator[int]:
        descriptor = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _confine(self, descriptor: int, places: tuple[str, ...]) -> str:
        """The opened thing's path in the sandbox.

        Raises:
            PermissionError: it is in none of the places.
        """
        real = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        prefix = os.path.realpath(self._directory)
        shown = _seen_inside(real.removeprefix(prefix)) if real.startswith(prefix + "/") else ""
        if not any(is_below(shown, place) for place in places):
            raise PermissionError(errno.EACCES, "outside of the session's files", shown)
        return shown

    def _real_target(self, root: int, path: str) -> str:
        """Where a write to `path` goes, as a path below the session's directory, links followed."""
        inside = _inside(path)
        try:
            descriptor = open_beneath(root, inside, os.O_PATH)
        except FileNotFoundError:
            return inside
        try:
            shown = self._confine(descriptor, (WORKSPACE, TMP))
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.EISDIR, "is a directory", path)
            return _inside(shown)
        finally:
            os.close(descriptor)

    def _open_parent(self, root: int, directory: str) -> int:
        """A descriptor of the directory, made if need be with all above it."""
        parts = directory.split("/")
        current = open_beneath(root, parts[0], os.O_PATH | os.O_DIRECTORY)
        try:
            for count in range(1, len(parts)):
                entered = self._enter(root, current, parts[count], "/".join(parts[: count + 1]))
                os.close(current)
                current = entered
            self._confine(current, (WORKSPACE, TMP))
        except BaseException:
            os.close(current)
            raise
        return current

    def _enter(self, root: int, parent: int, name: str, path: str) -> int:
        with suppress(FileNotFoundError):
            return open_beneath(root, path, os.O_PATH | os.O_DIRECTORY)
        self._confine(parent, (WORKSPACE, TMP))
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=parent)
        made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        self._give(made)
        return made

    def _give(self, descriptor: int) -> None:
        """Hand to the session's user what this process just made."""
        if os.fstat(descriptor).st_uid == os.geteuid() != self._uid:
            os.fchown(descriptor, self._uid, self._uid)


def _inside(path: str) -> str:
    """A sandbox path as a path below the session's directory.

    Raises:
        PermissionError: it is in none of its places.
    """
    normal = sandbox_path(path)
    if is_below(normal, SKILLS):
        return "skills" + normal[len(SKILLS) :]
    if is_below(normal, WORKSPACE) or is_below(normal, TMP):
        return normal.lstrip("/")
    raise PermissionError(errno.EACCES, "outside of the session's files", path)


def _seen_inside(path: str) -> str:
    """The reverse of `_inside`, of a path which begins with a slash."""
    return SKILLS + path[len("/skills") :] if is_below(path, "/skills") else path


def _mode_to_keep(parent: int, name: str) -> int:
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return 0o644
    return found.st_mode & 0o777 if stat.S_ISREG(found.st_mode) else 0o644


def _entry(directory: str, item: os.DirEntry[str]) -> FileEntry | None:
    try:
        found = item.stat(follow_symlinks=False)
    except FileNotFoundError:  # gone since
        return None
    name = os.fsencode(item.name).decode("utf-8", "replace")
    return FileEntry(
        posixpath.join(directory, name), stat.S_ISDIR(found.st_mode), found.st_size, found.st_mtime
    )
