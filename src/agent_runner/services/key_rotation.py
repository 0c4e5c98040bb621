"""Encrypting every stored secret anew with the current key."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog

from agent_runner.domain.kinds import KINDS, KindSpec
from agent_runner.domain.paging import MOST
from agent_runner.errors import ConflictError, NotFoundError, SecretUnreadableError
from agent_runner.ports.stores import ResourceStore, StoredResource
from agent_runner.services.secret_fields import SecretFields

log = structlog.get_logger(__name__)
_TRIES: Final = 20


@dataclass(slots=True)
class Rotation:
    """What a pass over the store did and found.

    Attributes:
        rotated: values encrypted anew.
        left: key id to the number of values still encrypted with it, the current key included.
        unreadable: values left as they are, each with the reason.
    """

    rotated: int = 0
    left: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)


class KeyRotation:
    """Goes over the store, a resource at a time; safe to break off and to repeat, also while others write."""

    def __init__(self, store: ResourceStore, secrets: SecretFields) -> None:
        self._store = store
        self._secrets = secrets

    @property
    def current_key_id(self) -> str:
        return self._secrets.current_key_id

    async def run(self) -> Rotation:
        """Encrypt anew whatever is not encrypted with the current key.

        A key may be dropped from the keyring once `left` does not name it.
        """
        result = Rotation()
        for kind in KINDS:
            after: str | None = None
            while rows := await self._store.list(kind.name, oldest_first=True, after=after, limit=MOST):
                for row in rows:
                    await self._one(kind, row, result)
                after = rows[-1].key.id
        log.info("keys rotated", rotated=result.rotated, left=dict(result.left))
        return result

    async def _one(self, kind: KindSpec[Any], row: StoredResource, result: Rotation) -> None:
        for _ in range(_TRIES):
            resource = kind.message.FromString(row.body)
            try:
                rotated = self._secrets.rotate(kind.name, resource)
                if rotated:
                    await self._store.put(
                        replace(row, body=resource.SerializeToString()), expected=row.version
                    )
            except SecretUnreadableError as error:
                result.unreadable.append(str(error))
                rotated = 0
            except (ConflictError, NotFoundError):
                try:
                    row = await self._store.get(row.key)
                except NotFoundError:
                    return
                continue
            result.rotated += rotated
            result.left += self._secrets.key_ids(resource)
            return
        raise ConflictError(kind.name, row.key.id, row.version)
