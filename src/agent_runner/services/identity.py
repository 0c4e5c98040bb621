"""Which store this is."""

from __future__ import annotations

import uuid
from typing import Final

from agent_runner.errors import AlreadyExistsError, NotFoundError
from agent_runner.ports.stores import ResourceKey, ResourceStore, StoredResource

_KEY: Final = ResourceKey("store_identity", "store")


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
