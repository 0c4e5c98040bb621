"""What can be done with a resource of any kind: the rules all kinds share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic

from agent_runner.domain.ids import canonical_id, is_id
from agent_runner.domain.kinds import KindSpec, R
from agent_runner.domain.paging import MOST, PageRequest
from agent_runner.domain.references import lookup_of
from agent_runner.domain.slugs import MOST_CHARACTERS, is_slug, slug_of
from agent_runner.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
)
from agent_runner.ports.stores import ResourceKey, ResourceStore, StoredResource
from agent_runner.services._clocks import Clock, NewId, timestamp
from agent_runner.services._locks import KeyedLocks
from agent_runner.services.secret_fields import SecretFields
from agent_runner.services.validation import validate, validate_size
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference
from ai.stigmer.commons.apiresource.status_pb2 import ApiResourceAudit, ApiResourceAuditInfo

_TRIES: Final = 20
"""How often a change is tried again when another process wrote first."""
_ACTOR: Final = "system"
MOST_PAGE_BYTES: Final = 3 << 20


@dataclass(frozen=True, slots=True)
class Page(Generic[R]):
    """One page of a list.

    Attributes:
        next_token: token of the next page; empty on the last.
    """

    items: Sequence[R]
    next_token: str = ""


class ResourceService(Generic[R]):
    """Creates, changes, finds and removes the resources of one kind.

    A kind with rules of its own overrides `_check`, or a whole method.
    """

    def __init__(
        self,
        spec: KindSpec[R],
        store: ResourceStore,
        *,
        clock: Clock,
        new_id: NewId,
        secrets: SecretFields | None = None,
    ) -> None:
        """`secrets` seals the variables of what is stored; what is read comes sealed, not clear."""
        self.spec = spec
        self._secrets = secrets or SecretFields()
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self._locks = KeyedLocks()

    async def create(self, request: R) -> R:
        """Store a new resource; its status is emptied, id and slug are made where it has none.

        Raises:
            InvalidRequestError: a field is wrong.
            AlreadyExistsError: the slug, or the id, is taken.
        """
        validate(request)
        resource = self._fresh(request)
        await self._insert(resource)
        return resource

    async def update(self, request: R) -> R:
        """Replace a resource, found by id or else by slug; id, slug, org and status stay.

        Raises:
            NotFoundError: there is none.
            InvalidRequestError: a field is wrong, or neither id nor slug is there.
        """
        if not self.spec.updatable:
            raise FailedPreconditionError(f"A {self.spec.name} cannot be changed once it is made.")
        validate(request)
        validate_size(request)
        found = await self._stored_like(request)
        async with self._locks.hold(found.key.id):
            return await self._replace(found.key, request)

    async def apply(self, request: R) -> R:
        """Update the resource with the request's slug in its organization, or create it.

        Raises:
            InvalidRequestError: a field is wrong.
            AlreadyExistsError: it is there and cannot be changed.
        """
        validate(request)
        slug = self._slug_for(request)
        for _ in range(_TRIES):
            found = await self._store.find(self.spec.name, request.metadata.org, slug)
            try:
                if found is None:
                    return await self.create(request)
                if not self.spec.updatable:
                    raise AlreadyExistsError(self.spec.name, slug)
                known = self._copy(request)
                known.metadata.id = found.key.id
                return await self.update(known)
            except AlreadyExistsError:
                # Someone made it between the look and the write: look again, unless it is the id.
                if found is not None or await self._id_is_taken(request, slug):
                    raise
            except NotFoundError as error:
                if error.name != (found.key.id if found else None):
                    raise  # something the resource refers to, rather than the resource
        raise ConflictError(self.spec.name, slug, 0)

    async def delete(self, resource_id: str) -> R:
        """Remove a resource; answers what it was.

        Raises:
            NotFoundError: there is none.
        """
        key = self._key(resource_id)
        return self._parse(await self._store.delete(key))

    async def get(self, resource_id: str) -> R:
        """Read a resource by id.

        Raises:
            NotFoundError: there is none.
        """
        return self._parse(await self._store.get(self._key(resource_id)))

    async def get_by_reference(self, reference: ApiResourceReference) -> R:
        """Read a resource by slug; without an organization, the oldest one with the slug.

        Raises:
            InvalidRequestError: the reference has no slug or means another kind.
            NotFoundError: nothing matches.
        """
        validate(reference)
        lookup = lookup_of(reference, self.spec)
        found = await self._store.find(self.spec.name, lookup.org, lookup.slug)
        if found is None:
            place = f"Organization {lookup.org!r} has none of this name." if lookup.org else ""
            raise NotFoundError(self.spec.name, lookup.slug, place)
        return self._parse(found)

    async def list(
        self,
        page: PageRequest,
        *,
        org: str | None = None,
        fields: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        tags: Sequence[str] = (),
    ) -> Page[R]:
        """One page, newest first, of at most 3 MiB: clients take 4 MiB unless told otherwise.

        Args:
            org: None for every organization.
            fields: values of indexed fields, all of which must match.
            labels: labels a resource must have.
            tags: tags a resource must have, all of them.
        """
        wanted = page.skip + page.size + 1
        found: list[R] = []
        before = page.before
        while len(found) < wanted:
            limit = min(wanted - len(found), MOST) if not labels and not tags else MOST
            rows = await self._store.list(self.spec.name, org=org, fields=fields, limit=limit, before=before)
            resources = (self._parse(row) for row in rows)
            found += [r for r in resources if _matches(r, labels, tags)]
            if len(rows) < limit:
                break
            before = rows[-1].key.id
        chosen = found[page.skip : page.skip + page.size]
        listed = await self._listed(chosen)
        items = _bounded(listed)
        if len(items) < len(listed):
            return Page(items, items[-1].metadata.id)
        return Page(items, chosen[-1].metadata.id if len(found) >= wanted else "")

    async def _listed(self, found: Sequence[R]) -> Sequence[R]:
        """Resources as lists show them."""
        return found

    async def count(self, fields: Mapping[str, str] | None = None) -> int:
        """How many there are, of those with the values."""
        return await self._store.count(self.spec.name, fields=fields)

    async def _check(self, resource: R, before: R | None) -> Mapping[str, str]:
        """Check and complete a resource that is about to be written.

        Args:
            before: what is stored now; None for a new one.

        Returns:
            Values `list` can filter by.
        """
        return {}

    def _fresh(self, request: R, slug: str | None = None) -> R:
        """A new resource out of a request. The slug is made from the name unless it is given."""
        validate_size(request)
        resource = self._copy(request)
        metadata = resource.metadata
        metadata.id = self._id_for(request)
        metadata.slug = self._slug_for(request) if slug is None else slug
        metadata.ClearField("version")
        resource.ClearField("status")
        now = timestamp(self._clock())
        for info in (resource.status.audit.spec_audit, resource.status.audit.status_audit):
            info.created_by.id = info.updated_by.id = _ACTOR
            info.created_at.CopyFrom(now)
            info.updated_at.CopyFrom(now)
            info.event = "created"
        return resource

    async def _insert(self, resource: R) -> StoredResource:
        fields = await self._check(resource, None)
        self._secrets.seal(self.spec.name, resource)
        stored = self._stored(resource, fields)
        await self._store.put(stored, expected=0)
        return stored

    async def _replace(self, key: ResourceKey, request: R) -> R:
        for _ in range(_TRIES):
            stored = await self._store.get(key)
            before = self._parse(stored)
            resource = self._changed(request, before)
            fields = await self._check(resource, before)
            self._secrets.seal(self.spec.name, resource, before)
            try:
                await self._store.put(self._stored(resource, fields), expected=stored.version)
            except ConflictError:
                continue  # another process; in this one the lock keeps order
            return resource
        raise ConflictError(self.spec.name, key.id, stored.version)

    def _changed(self, request: R, before: R) -> R:
        resource = self._copy(request)
        metadata, known = resource.metadata, before.metadata
        metadata.id, metadata.slug, metadata.org = known.id, known.slug, known.org
        metadata.name = metadata.name or known.name
        metadata.ClearField("version")
        resource.status.CopyFrom(before.status)  # type: ignore[arg-type]
        touch(resource.status.audit, "spec_audit", self._clock)
        touch(resource.status.audit, "status_audit", self._clock)
        return resource

    async def _stored_like(self, request: R) -> StoredResource:
        metadata = request.metadata
        if metadata.id:
            return await self._store.get(self._key(metadata.id, "metadata.id"))
        if not metadata.slug:
            raise InvalidRequestError.of(
                "metadata.id", "must name the resource to change, or metadata.slug must"
            )
        found = await self._store.find(self.spec.name, metadata.org, metadata.slug)
        if found is None:
            raise NotFoundError(self.spec.name, metadata.slug)
        return found

    async def _id_is_taken(self, request: R, slug: str) -> bool:
        return (
            bool(request.metadata.id)
            and await self._store.find(self.spec.name, request.metadata.org, slug) is None
        )

    def _id_for(self, request: R) -> str:
        if not request.metadata.id:
            return self._new_id(self.spec.id_prefix)
        chosen = canonical_id(request.metadata.id)
        if not is_id(self.spec.id_prefix, chosen):
            raise InvalidRequestError.of(
                "metadata.id", f"must be {self.spec.id_prefix}- and up to 63 letters and digits, or left out"
            )
        return chosen

    def _slug_for(self, request: R) -> str:
        metadata = request.metadata
        if metadata.slug:
            if not is_slug(metadata.slug):
                raise InvalidRequestError.of(
                    "metadata.slug", f"must be up to {MOST_CHARACTERS} letters, digits, '-', '.' or '_'"
                )
            return metadata.slug
        if not metadata.name:
            raise InvalidRequestError.of("metadata.name", "must not be empty")
        slug = slug_of(metadata.name)
        if not slug or len(slug) > MOST_CHARACTERS:
            raise InvalidRequestError.of(
                "metadata.name",
                f"must have 1 to {MOST_CHARACTERS} letters or digits of ASCII; otherwise set metadata.slug",
            )
        return slug

    def _key(self, resource_id: str, field: str = "value") -> ResourceKey:
        """The key of an id; a text that cannot be an id names nothing."""
        if not resource_id:
            raise InvalidRequestError.of(field, f"must be the id of a {self.spec.name}", "required")
        canonical = canonical_id(resource_id)
        if not is_id(self.spec.id_prefix, canonical):
            raise NotFoundError(
                self.spec.name, resource_id[:100], f"Its ids begin with {self.spec.id_prefix}-."
            )
        return ResourceKey(self.spec.name, canonical)

    def _copy(self, request: R) -> R:
        copy = self.spec.message()
        copy.CopyFrom(request)  # type: ignore[arg-type]
        return copy

    def _parse(self, stored: StoredResource) -> R:
        return self.spec.message.FromString(stored.body)  # type: ignore[return-value]

    def _stored(self, resource: R, fields: Mapping[str, str]) -> StoredResource:
        metadata = resource.metadata
        return StoredResource(
            ResourceKey(self.spec.name, metadata.id),
            metadata.org,
            metadata.slug if self.spec.unique_slugs else "",
            resource.SerializeToString(),
            fields=fields,
        )


def touch(audit: ApiResourceAudit, name: str, clock: Clock) -> None:
    """Note a change: updated is now, created stays."""
    info: ApiResourceAuditInfo = getattr(audit, name)
    info.updated_by.id = _ACTOR
    info.updated_at.CopyFrom(timestamp(clock()))
    info.event = "updated"


def _bounded(items: Sequence[R]) -> Sequence[R]:
    """The first items, as many as fit; one at least."""
    size = 0
    for number, item in enumerate(items):
        size += item.ByteSize()
        if number and size > MOST_PAGE_BYTES:
            return items[:number]
    return items


def _matches(resource: R, labels: Mapping[str, str] | None, tags: Sequence[str]) -> bool:
    metadata = resource.metadata
    return all(metadata.labels.get(key) == value for key, value in (labels or {}).items()) and all(
        tag in metadata.tags for tag in tags
    )
