"""An artifact store that is opened with the first artifact."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import cached_property

from agent_runner.ports.artifacts import ArtifactStore


class DeferredArtifactStore:
    """Passes everything on to a store it opens when it is first asked for something.

    A library of object stores takes 4 MiB, which a control plane without skills does without.
    """

    def __init__(self, open: Callable[[], ArtifactStore]) -> None:
        self._open = open

    @cached_property
    def _store(self) -> ArtifactStore:
        return self._open()

    async def put(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        return await self._store.put(key, chunks)

    def get(self, key: str, *, chunk_size: int = 1 << 20) -> AsyncIterator[bytes]:
        return self._store.get(key, chunk_size=chunk_size)

    async def exists(self, key: str) -> bool:
        return await self._store.exists(key)

    async def delete(self, key: str) -> None:
        await self._store.delete(key)

    async def delete_under(self, folder: str) -> int:
        return await self._store.delete_under(folder)
