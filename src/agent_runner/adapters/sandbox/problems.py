"""What `inside.py` answers, as our errors."""

from __future__ import annotations

import errno
from typing import Any

from agent_runner.adapters.sandbox.names import is_below, sandbox_path
from agent_runner.errors import FailedPreconditionError, InvalidRequestError, NotFoundError
from agent_runner.ports.sandboxes import FileProblem

_WRITABLE = ("/workspace", "/tmp")  # noqa: S108 - the sandbox's own

_REASONS = {
    errno.EACCES: "is outside of the session's files",
    errno.ELOOP: "is a loop of links",
    errno.EISDIR: "is a directory",
    errno.ENOTDIR: "is no directory",
    errno.EINVAL: "is no regular file",
}


def checked_path(path: str) -> str:
    try:
        return sandbox_path(path)
    except ValueError as error:
        raise InvalidRequestError.of("path", f"{path[:200]!r} is not a path.") from error


def raise_problem(answer: dict[str, Any], path: str) -> None:
    if "problem" not in answer:
        return
    number = answer["errno"]
    if number == errno.ENOENT:
        raise NotFoundError("File", path)
    if number in (errno.ENOSPC, errno.EDQUOT):
        raise FailedPreconditionError("There is no space left for the session's files.")
    reason = _REASONS.get(number, "cannot be used")
    raise InvalidRequestError.of("path", f"{path[:200]!r} {reason}.")


def normal_path(path: str) -> str | None:
    """The absolute, normal form; None of what cannot be a path."""
    try:
        return sandbox_path(path)
    except ValueError:
        return None


def refused_to_write(path: str) -> FileProblem | None:
    """Why the path cannot be written, as far as its words tell."""
    normal = normal_path(path)
    if normal is None:
        return FileProblem.INVALID_PATH
    return None if any(is_below(normal, place) for place in _WRITABLE) else FileProblem.DENIED
