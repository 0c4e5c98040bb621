"""Names which come from outside: session ids, paths in a sandbox, environment variables."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

from agent_runner.errors import InvalidRequestError

WORKSPACE = "/workspace"
TMP = "/tmp"  # noqa: S108 - the sandbox's own, not the host's
SKILLS = "/bin/skills"

SCRIPT_LIMIT = 16 << 20
"""Longest script in bytes."""

_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SKILL_HASH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VARIABLE_LIMIT = (128 << 10) - 4096
"""Linux takes 128 KiB for one `NAME=value`."""
_ENVIRONMENT_LIMIT = 1 << 20


def check_session_id(session_id: str) -> str:
    """The id, safe to be a directory's or a container's name.

    Raises:
        InvalidRequestError: it is not.
    """
    if not _SESSION_ID.fullmatch(session_id):
        raise InvalidRequestError.of(
            "session_id", f"{session_id[:80]!r} is not an id: use letters, digits, dots and dashes."
        )
    return session_id


def check_skill_hash(value: str) -> str:
    """A skill's hash, safe to be a directory's name."""
    if not _SKILL_HASH.fullmatch(value):
        raise InvalidRequestError.of("skills", f"{value[:80]!r} is not the hash of a skill.")
    return value


def check_script(script: str) -> bytes:
    """The script as bytes.

    Raises:
        InvalidRequestError: it is too long or holds a NUL.
    """
    if "\0" in script:
        raise InvalidRequestError.of("script", "a script cannot contain a NUL character.")
    encoded = script.encode("utf-8", "surrogateescape")
    if len(encoded) > SCRIPT_LIMIT:
        raise InvalidRequestError.of(
            "script", f"{len(encoded)} bytes are more than {SCRIPT_LIMIT}; upload a file and run that."
        )
    return encoded


def check_environment(env: Mapping[str, str]) -> Mapping[str, str]:
    """Variables a process can have.

    Raises:
        InvalidRequestError: names the variable which cannot be passed on; never shows its value.
    """
    total = 0
    for name, value in env.items():
        if not name or "=" in name or "\0" in name:
            raise InvalidRequestError.of("env", f"{name[:80]!r} is not a name for a variable.")
        if "\0" in value:
            raise InvalidRequestError.of("env", f"the value of {name} contains a NUL character.")
        size = len(name) + len(value.encode("utf-8", "surrogateescape"))
        if size > _VARIABLE_LIMIT:
            raise InvalidRequestError.of("env", f"{name} has {size} bytes, more than {_VARIABLE_LIMIT}.")
        total += size
    if total > _ENVIRONMENT_LIMIT:
        raise InvalidRequestError.of(
            "env", f"all together have {total} bytes: more than {_ENVIRONMENT_LIMIT}."
        )
    return env


def sandbox_path(path: str) -> str:
    """The absolute, normal form of a path in the sandbox; relative ones start in `/workspace`.

    Raises:
        ValueError: no path can look like this.
    """
    if not path or "\0" in path:
        raise ValueError(path)
    normal = posixpath.normpath(posixpath.join(WORKSPACE, path))
    return "/" + normal.lstrip("/")


def is_below(path: str, directory: str) -> bool:
    """Whether a normal path is the directory or in it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")
