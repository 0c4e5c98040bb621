"""Where large bytes are kept: skill archives, tool outputs, workspace copies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol


class ArtifactStore(Protocol):
    """Bytes by key. Every adapter passes `tests/contract/test_artifact_store.py`.

    A key is one or more names joined by `/`: letters, digits, `.`, `_`, `-`; no empty name, no `.` or
    `..`. Every method raises InvalidRequestError for another key, before it touches the store.
    """

    async def put(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        """Store whole or not at all, replacing what was there; returns the size in bytes."""
        ...

    def get(self, key: str, *, chunk_size: int = 1 << 20) -> AsyncIterator[bytes]:
        """Stream the bytes.

        Raises:
            NotFoundError: nothing is stored under the key (raised at the first chunk).
        """
        ...

    async def exists(self, key: str) -> bool: ...

    async def delete(self, key: str) -> None:
        """Remove it; nothing happens when it is not there."""
        ...

    async def delete_under(self, folder: str) -> int:
        """Remove all whose key begins with `folder` and a `/`; returns how many there were.

        `folder` is written as a key.
        """
        ...
