"""Encrypting values that must not be readable where they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SecretPlace:
    """Where a secret is kept. What is sealed for one place does not open in another.

    Attributes:
        kind: as in `ApiResourceKind`, such as `environment`.
        id: of the resource.
        name: of the value in it: the path of its map and its key, such as `spec.data.API_TOKEN`.
    """

    org: str
    kind: str
    id: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} of {self.kind} {self.id!r}"


class SecretBox(Protocol):
    """Seals and opens. Every adapter passes `tests/contract/test_secrets.py`.

    Each sealed value is `v1.KEYID.DATA`, printable ASCII without spaces; sealing the same value twice
    gives two different ones.
    """

    def seal(self, value: str, place: SecretPlace) -> str:
        """Encrypt with the first key."""
        ...

    def open(self, sealed: str, place: SecretPlace) -> str:
        """Decrypt what `seal` made for this very place.

        Raises:
            SecretUnreadableError: the key is not in the keyring, or the value was altered or moved.
        """
        ...

    def key_id(self, sealed: str) -> str:
        """The id of the key it needs; empty for what no box has made."""
        ...

    @property
    def current_key_id(self) -> str:
        """The id of the key new values are sealed with."""
        ...
