"""Methods every kind of resource has, whatever its services are called."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from agent_runner.controlplane._rpc import Methods, Unary
from agent_runner.domain.paging import page_by_token
from agent_runner.errors import InvalidRequestError
from agent_runner.services.container import Services
from agent_runner.services.resources import ResourceService
from agent_runner.services.secret_fields import shown
from agent_runner.services.validation import validate
from agent_runner.v1.resource_service_pb2 import ListResourcesRequest, ListResourcesResponse


def by_id(answer: Callable[[str], Awaitable[Message]]) -> Unary:
    """A method whose request is an id, in a field `value` or `resource_id`."""

    async def method(request: Any) -> Message:
        validate(request)
        fields = request.DESCRIPTOR.fields_by_name
        return await answer(request.value if "value" in fields else request.resource_id)

    return method


def resource_methods(service: ResourceService[Any]) -> Methods:
    """What commands and queries of a kind have in common."""
    return {
        "create": service.create,
        "update": service.update,
        "apply": service.apply,
        "delete": by_id(service.delete),
        "get": by_id(service.get),
        "getByReference": service.get_by_reference,
    }


class ResourceController:
    """`agent_runner.v1.ResourceService`."""

    def __init__(self, services: Services) -> None:
        self._by_kind = services.by_kind

    async def list_resources(self, request: ListResourcesRequest) -> ListResourcesResponse:
        validate(request)
        service = self._by_kind.get(request.kind)
        if service is None:
            raise _unknown(request.kind, [s.spec.name for s in self._by_kind.values()])
        page = await service.list(
            page_by_token(request.page_size, request.page_token, service.spec.id_prefix),
            org=request.org or None,
            labels=dict(request.labels),
        )
        response = ListResourcesResponse(next_page_token=page.next_token)
        for item in page.items:
            packed = AnyMessage()
            packed.Pack(shown(item))
            response.items.append(packed)
        return response


def _unknown(kind: int, known: list[str]) -> InvalidRequestError:
    return InvalidRequestError.of("kind", f"{kind} is not kept here; there are {', '.join(known)}")
