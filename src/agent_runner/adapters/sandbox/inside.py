"""File operations done inside a sandbox, by `python3 -I -c` with this file's text.

For kinds whose files the worker cannot open itself. Whatever links the agent planted are resolved
there, where they lead nowhere else. Only the standard library, and any Python from 3.7.

One operation per run: a line of JSON comes first on standard input; then bytes, as each operation says.
On standard output come frames: a length in 8 hexadecimal digits, then so many bytes. The first frame is
JSON: `{}`, or `{"problem": one of FileProblem, "errno": ...}`.
"""

# Started for every file operation, so nothing is imported that can be done without: no pathlib.
# ruff: noqa: PTH101, PTH103, PTH105, PTH108, PTH110, PTH112, PTH115, PTH118, PTH119, PTH120, PTH123
from __future__ import annotations

import errno
import json
import os
import posixpath
import stat
import sys
from typing import IO, Any

PLACES = ("/workspace", "/tmp")  # noqa: S108 - the sandbox's own
READABLE = (*PLACES, "/bin/skills", "/usr/bin/skills")
CHUNK = 1 << 16
PROBLEMS = {
    errno.ENOENT: "file_not_found",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EROFS: "permission_denied",
    errno.EISDIR: "is_directory",
    errno.EFBIG: "too_large",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
}


def send(data: bytes) -> None:
    sys.stdout.buffer.write(b"%08x" % len(data) + data)


def answer(value: Any) -> None:
    send(json.dumps(value).encode())
    sys.stdout.buffer.flush()


def trouble(error: OSError | ValueError) -> dict[str, Any]:
    number = getattr(error, "errno", None)
    return {"problem": PROBLEMS.get(number or 0, "invalid_path"), "errno": number or 0}


def take(size: int) -> bytes:
    data = sys.stdin.buffer.read(size)
    if len(data) < size:
        raise EOFError
    return data


def below(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(place + "/") for place in places)


def outside(path: str) -> PermissionError:
    return PermissionError(errno.EACCES, "outside of the session's files", path)


def open_to_read(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) and below(os.readlink(f"/proc/self/fd/{descriptor}"), READABLE):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory", path)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is no regular file", path)
    raise outside(path)


class Replacing:
    """A new file to write to, which takes the path's place when the block ends well."""

    def __init__(self, path: str) -> None:
        target = os.path.realpath(path) if os.path.exists(path) else path
        if not below(target, PLACES) or target in PLACES:
            raise outside(path)
        if os.path.isdir(target):
            raise IsADirectoryError(errno.EISDIR, "is a directory", path)
        parent = os.path.dirname(target)
        os.makedirs(parent, exist_ok=True)
        if not below(os.path.realpath(parent), PLACES):
            raise outside(path)
        self.target = target
        self.aside = os.path.join(parent, f".{os.path.basename(target)[:32]}.{os.urandom(6).hex()}~")

    def __enter__(self) -> IO[bytes]:
        try:
            mode = stat.S_IMODE(os.lstat(self.target).st_mode)
        except OSError:
            mode = 0o644
        self.file = open(self.aside, "xb")
        os.chmod(self.aside, mode & 0o777)
        return self.file

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            self.file.close()
            if kind is None:
                os.replace(self.aside, self.target)
                return
        except OSError:
            os.unlink(self.aside)
            raise
        os.unlink(self.aside)


def put(request: dict[str, Any]) -> None:
    """`files`: [[path, size], ...], with the contents after the line. Answers a list of problems."""
    found: list[str | None] = []
    for path, size in request["files"]:
        data = take(size)
        try:
            with Replacing(path) as file:
                file.write(data)
            found.append(None)
        except (OSError, ValueError) as error:
            found.append(trouble(error)["problem"])
    answer(found)


def get(request: dict[str, Any]) -> None:
    """`paths`, `limit`. Answers per path: a frame of JSON, and where that is `{}` one of content."""
    for path in request["paths"]:
        try:
            descriptor = open_to_read(path)
            with open(descriptor, "rb") as file:
                size = os.fstat(descriptor).st_size
                data = file.read(request["limit"] + 1) if size <= request["limit"] else b""
                if max(len(data), size) > request["limit"]:
                    raise OSError(errno.EFBIG, "too large", path)
        except (OSError, ValueError) as error:
            answer(trouble(error))
        else:
            answer({})
            send(data)


def read(request: dict[str, Any]) -> None:
    """`path`. Frames of content, an empty one at the end."""
    try:
        descriptor = open_to_read(request["path"])
    except (OSError, ValueError) as error:
        answer(trouble(error))
        return
    answer({})
    with open(descriptor, "rb") as file:
        left = os.fstat(descriptor).st_size
        while left > 0:
            data = file.read(min(CHUNK, left))
            if not data:
                break
            left -= len(data)
            send(data)
    send(b"")


def write(request: dict[str, Any]) -> None:
    """`path`, then frames of content, an empty one at the end; without that nothing is changed."""
    try:
        with Replacing(request["path"]) as file:
            answer({})
            while True:
                size = int(take(8), 16)
                if not size:
                    break
                file.write(take(size))
        answer({})
    except EOFError:
        pass
    except (OSError, ValueError) as error:
        answer(trouble(error))


def listing(request: dict[str, Any]) -> None:
    """`path`. Answers the entries: [path, is_dir, size, modified]."""
    path = request["path"]
    try:
        if not below(os.path.realpath(path), READABLE):
            raise outside(path)
        entries = []
        with os.scandir(path) as found:
            for item in found:
                try:
                    about = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                name = os.fsencode(item.name).decode("utf-8", "replace")
                shown = posixpath.join(path, name)
                entries.append([shown, stat.S_ISDIR(about.st_mode), about.st_size, about.st_mtime])
    except (OSError, ValueError) as error:
        answer(trouble(error))
        return
    answer({})
    answer(sorted(entries))


if __name__ == "__main__":
    os.umask(0o022)
    asked = json.loads(sys.stdin.buffer.readline().decode())
    {"put": put, "get": get, "read": read, "write": write, "list": listing}[asked["operation"]](asked)
    sys.stdout.buffer.flush()
