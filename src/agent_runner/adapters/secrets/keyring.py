"""Secrets sealed with AES-256-GCM under a ring of keys."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from agent_runner.errors import SecretUnreadableError, SettingsError
from agent_runner.ports.secrets import SecretPlace

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_VERSION: Final = "v1"
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}\Z")
_SETTING: Final = "AGENT_RUNNER_ENCRYPTION_KEYS"


class Keyring:
    """A `SecretBox`. The first key seals; all of them open.

    A sealed value is `v1.KEYID.` and nonce, ciphertext and tag in base64url. Its place is
    authenticated along with it, so that it cannot be moved to another resource or name.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        """Take keys of 32 bytes by id, the one to seal with first.

        Raises:
            SettingsError: there is none, or one is unusable; no key is repeated in the message.
        """
        if not keys:
            raise SettingsError(f"{_SETTING}: holds no key.")
        for key_id, key in keys.items():
            if not _KEY_ID.match(key_id):
                raise SettingsError(f"{_SETTING}: a key id has up to 32 letters, digits, - or _.")
            if len(key) != KEY_BYTES:
                raise SettingsError(
                    f"{_SETTING}: key {key_id!r} has {len(key)} bytes, not {KEY_BYTES}. "
                    "Make one with: openssl rand -base64 32"
                )
        self._keys = dict(keys)
        self._current = next(iter(keys))

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """Read `k2:BASE64,k1:BASE64`; newlines separate too, and lines beginning with `#` are left out.

        Raises:
            SettingsError: it cannot be read; says which entry, and never a key.
        """
        keys: dict[str, bytes] = {}
        lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
        entries = [entry.strip() for line in lines for entry in line.split(",") if entry.strip()]
        for number, entry in enumerate(entries, 1):
            key_id, separator, encoded = entry.partition(":")
            if not separator:
                raise SettingsError(f"{_SETTING}: entry {number} must be ID:BASE64.")
            if key_id in keys:
                raise SettingsError(f"{_SETTING}: entry {number} repeats a key id.")
            keys[key_id] = _decoded(encoded, number)
        return cls(keys)

    @property
    def current_key_id(self) -> str:
        return self._current

    def seal(self, value: str, place: SecretPlace) -> str:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher(self._current).encrypt(nonce, value.encode(), _bound_to(place))
        return f"{_VERSION}.{self._current}.{base64.urlsafe_b64encode(nonce + sealed).decode().rstrip('=')}"

    def open(self, sealed: str, place: SecretPlace) -> str:
        key_id = self.key_id(sealed)
        if not key_id:
            raise SecretUnreadableError(f"{place} is not encrypted as expected. Set its value again.")
        if key_id not in self._keys:
            raise SecretUnreadableError(
                f"{place} is encrypted with key {key_id!r}, which is not in the keyring. "
                f"Add that key to {_SETTING}, or set the value again."
            )
        from cryptography.exceptions import InvalidTag

        data = sealed.split(".", 2)[2]
        try:
            raw = base64.urlsafe_b64decode(data + "=" * (-len(data) % 4))
            nonce, ciphertext = raw[:_NONCE_BYTES], raw[_NONCE_BYTES:]
            return self._cipher(key_id).decrypt(nonce, ciphertext, _bound_to(place)).decode()
        except (InvalidTag, ValueError):
            raise SecretUnreadableError(
                f"{place} was altered, moved from another place, or encrypted with another key called "
                f"{key_id!r}. Set its value again."
            ) from None

    def _cipher(self, key_id: str) -> AESGCM:
        # Imported with the first secret: 7 MiB, which a process that has none does without.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(self._keys[key_id])

    def key_id(self, sealed: str) -> str:
        parts = sealed.split(".")
        return parts[1] if len(parts) == 3 and parts[0] == _VERSION and _KEY_ID.match(parts[1]) else ""


def new_key() -> str:
    """A fresh key as it stands in the setting, without its id."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def _bound_to(place: SecretPlace) -> bytes:
    # JSON keeps the four apart, whatever characters they hold.
    return json.dumps([place.org, place.kind, place.id, place.name]).encode()


def _decoded(encoded: str, number: int) -> bytes:
    standard = encoded.strip().translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except binascii.Error:
        raise SettingsError(f"{_SETTING}: the key of entry {number} is not base64.") from None
