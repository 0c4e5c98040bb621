"""Reading and changing resources of every kind, one way for all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar, cast

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from agent_runner.client.channels import Channel
from agent_runner.client.errors import UnsupportedError
from agent_runner.client.kinds import ORGANIZATION, SKILL, Kind, canonical_id, kind_of
from agent_runner.errors import InvalidRequestError, NotFoundError
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference

LATEST = "latest"
_PAGE = 200

R = TypeVar("R", bound=Message)


class Resources:
    """Resources of one server. `org` is where slugs are looked up and new things are put."""

    def __init__(self, channel: Channel, org: str) -> None:
        self._channel = channel
        self.org = org

    async def get(self, kind: Kind, name: str, *, org: str | None = None) -> Message:
        """Read one by id or slug; executions and sessions also by `latest`.

        Raises:
            NotFoundError: there is none; names like it are in the message.
        """
        if name == LATEST and kind.query("getByReference") is None:
            return await self._latest(kind, org)
        if not kind.is_id(name) and kind.query("getByReference") is not None:
            return await self._get_by_slug(kind, name, org)
        request = _identified(kind.query("get"), canonical_id(name) if kind.is_id(name) else name)
        try:
            return await self._call(kind.query("get"), request, kind)
        except NotFoundError as error:
            raise await self._not_found(kind, name, org) from error

    async def find(self, kind: Kind, name: str, *, org: str | None = None) -> Message | None:
        """As `get`, but None when there is none."""
        try:
            if not kind.is_id(name) and kind.query("getByReference") is not None:
                return await self._call(kind.query("getByReference"), self._reference(kind, name, org), kind)
            return await self._call(
                kind.query("get"), _identified(kind.query("get"), canonical_id(name)), kind
            )
        except NotFoundError:
            return None

    async def _get_by_slug(self, kind: Kind, slug: str, org: str | None) -> Message:
        found = await self.find(kind, slug, org=org)
        if found is None:
            raise await self._not_found(kind, slug, org)
        return found

    async def _latest(self, kind: Kind, org: str | None) -> Message:
        async for resource in self.list(kind, org=org, limit=1):
            # Lists show large resources in part.
            return await self.get(kind, _metadata(resource).id)
        raise NotFoundError(kind.word, LATEST, f"There are no {kind.plural} yet.")

    async def _not_found(self, kind: Kind, name: str, org: str | None) -> NotFoundError:
        from difflib import get_close_matches

        if kind.query("getByReference") is None:
            return NotFoundError(kind.word, name, f"List them with: agent-runner get {kind.plural}")
        names = [_metadata(r).slug or _metadata(r).id async for r in self.list(kind, org=org, limit=_PAGE)]
        if close := get_close_matches(name, names, n=3, cutoff=0.5):
            return NotFoundError(kind.word, name, f"Did you mean {' or '.join(close)}?")
        if not names:
            return NotFoundError(kind.word, name, f"There are no {kind.plural} in {org or self.org!r} yet.")
        shown = ", ".join(sorted(names)[:8]) + (", …" if len(names) > 8 else "")
        return NotFoundError(kind.word, name, f"There are: {shown}.")

    def _reference(self, kind: Kind, slug: str, org: str | None) -> ApiResourceReference:
        return ApiResourceReference(org=org or self.org, kind=cast("Any", kind.number), slug=slug)

    async def apply(self, resource: R) -> R:
        """Make it, or change the one of the same slug; returns it as it is then.

        Kinds which cannot be changed are made anew.
        """
        kind = kind_of(resource)
        method = kind.command("apply") or kind.command("create")
        return cast("R", await self._call(method, resource, kind))

    async def create(self, resource: R) -> R:
        """Make it.

        Raises:
            AlreadyExistsError: the slug is taken.
        """
        kind = kind_of(resource)
        return cast("R", await self._call(kind.command("create"), resource, kind))

    async def delete(self, kind: Kind, name: str, *, org: str | None = None) -> Message:
        """Remove it by id or slug; returns what it was."""
        resource = await self.get(kind, name, org=org)
        method = kind.command("delete")
        return await self._call(method, _identified(method, _metadata(resource).id), kind)

    async def list(
        self,
        kind: Kind,
        *,
        org: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int = 0,
    ) -> AsyncIterator[Message]:
        """Newest first, all pages.

        Args:
            org: None for the organization of the client, empty for every one.
            limit: the most to yield; 0 for all.
        """
        from agent_runner.v1.resource_service_pb2 import ListResourcesRequest, ListResourcesResponse

        request = ListResourcesRequest(
            kind=cast("Any", kind.number),
            org=self.org if org is None else org,
            page_size=min(limit or _PAGE, _PAGE),
            labels=labels or {},
        )
        seen = 0
        while True:
            method = "/agent_runner.v1.ResourceService/ListResources"
            page = await self._channel.unary(method, request, ListResourcesResponse)
            for item in page.items:
                resource = kind.message()
                item.Unpack(resource)
                yield resource
                seen += 1
                if seen == limit:
                    return
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def push_skill(
        self, name: str, artifact: bytes, *, org: str | None = None, tag: str = ""
    ) -> Message:
        """Store a skill's archive; `artifact` is a zip with SKILL.md at its top."""
        method = SKILL.command("push")
        assert method is not None
        request = _message_class(method)(
            name=name, artifact=artifact, org=org or self.org, scope=ORGANIZATION, tag=tag
        )
        return await self._call(method, request, SKILL)

    async def _call(self, method: MethodDescriptor | None, request: Message, kind: Kind) -> Message:
        if method is None:
            raise UnsupportedError(f"This cannot be done with {kind.plural}: the API has no such call.")
        path = f"/{method.containing_service.full_name}/{method.name}"
        return await self._channel.unary(path, request, kind.message)


def _message_class(method: MethodDescriptor) -> Any:
    from google.protobuf.message_factory import GetMessageClass

    return GetMessageClass(method.input_type)


def _identified(method: MethodDescriptor | None, id: str) -> Message:
    """The request of a method which takes nothing but an id."""
    if method is None:
        raise InvalidRequestError.of("kind", "The API cannot read or remove this kind.")
    names = method.input_type.fields_by_name
    request: Message = _message_class(method)(**{"value" if "value" in names else "resource_id": id})
    return request


def _metadata(resource: Message) -> Any:
    return cast("Any", resource).metadata
