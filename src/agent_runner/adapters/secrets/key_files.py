"""A key of one's own, made on first start and kept in a file."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Final

import structlog

from agent_runner.adapters.secrets.keyring import Keyring, new_key
from agent_runner.errors import SettingsError

log = structlog.get_logger(__name__)

NAME: Final = "encryption-keys"
_HEAD: Final = (
    "# Keys to the secrets in this directory. Without them the secrets are lost: keep a copy elsewhere.\n"
)


def open_keyring(setting: str | None, data_dir: Path) -> Keyring:
    """The keyring of the setting; without one, of the file `encryption-keys` in the data directory.

    The file is made with a fresh key where there is none, with a warning that says where it is.

    Raises:
        SettingsError: the keys cannot be read, or the file is open to other users.
    """
    if setting:
        return Keyring.parse(setting)
    path = data_dir / NAME
    if _make(path):
        log.warning(
            "made a key for secrets; without this file they cannot be read, so keep a copy elsewhere",
            path=str(path),
        )
    return Keyring.parse(_read(path))


def _make(path: Path) -> bool:
    """Make the file whole or not at all; False when it is there, also when another process was faster."""
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{NAME}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{_HEAD}{_new_entry()}\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # fails when the name is taken, unlike a rename
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    _sync_directory(path.parent)
    return True


def _new_entry() -> str:
    """A fresh key with an id no other installation's key has, so that a missing one is known by its name."""
    key = new_key()
    return f"k{hashlib.sha256(key.encode()).hexdigest()[:8]}:{key}"


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The keys to the secrets cannot be read from {path}: {error}.") from None
    if stat.S_IMODE(mode) & 0o077:
        raise SettingsError(f"{path} holds keys and is open to other users. Say: chmod 600 {path}")
    return text
