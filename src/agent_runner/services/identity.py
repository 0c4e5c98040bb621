"""Which store this is, and whether it answers."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import suppress
from typing import Final

from agent_runner.errors import AgentRunnerError, AlreadyExistsError, ConflictError, NotFoundError
from agent_runner.ports.stores import ResourceKey, ResourceStore, StoredResource

_KEY: Final = ResourceKey("store_identity", "store")
_PROBE: Final = ResourceKey("store_probe", "store")
_WRITE_EVERY: Final = 5.0
"""Seconds; whoever may ask must not be able to keep the disk busy."""


async def store_id(store: ResourceStore) -> str:
    """A name that no other store has; made when it is asked for first.

    By it workflows are told apart where several stores share a namespace of Temporal.
    """
    try:
        return (await store.get(_KEY)).body.decode()
    except NotFoundError:
        made = StoredResource(_KEY, "", "", uuid.uuid4().hex.encode())
    try:
        await store.put(made, expected=0)
    except AlreadyExistsError:  # another process was faster
        return (await store.get(_KEY)).body.decode()
    return made.body.decode()


class StoreHealth:
    """Whether the store can be used now: read, and written to, which a full disk does not allow."""

    def __init__(self, store: ResourceStore) -> None:
        self._store = store
        self._written_at = float("-inf")

    async def problem(self, patience: float) -> str:
        """Why it cannot, for people; empty when it can.

        Args:
            patience: seconds it gets to answer.
        """
        try:
            async with asyncio.timeout(patience):
                await self._try()
        except TimeoutError:
            return f"The database does not answer within {patience:g} s."
        except AgentRunnerError as error:
            return str(error)
        return ""

    async def _try(self) -> None:
        try:
            version = (await self._store.get(_PROBE)).version
        except NotFoundError:  # an answer as well
            version = 0
        if time.monotonic() - self._written_at < _WRITE_EVERY:
            return
        with suppress(ConflictError, AlreadyExistsError):  # somebody else has just done it
            await self._store.put(StoredResource(_PROBE, "", "", b""), expected=version)
        self._written_at = time.monotonic()
