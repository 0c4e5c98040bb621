"""What a reference means: which kind, and where to look."""

from __future__ import annotations

from dataclasses import dataclass

from agent_runner.domain.kinds import KindSpec, R
from agent_runner.errors import InvalidRequestError
from ai.stigmer.commons.apiresource.apiresourcekind.api_resource_kind_pb2 import ApiResourceKind
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference


@dataclass(frozen=True, slots=True)
class Lookup:
    """Where a reference points.

    Attributes:
        slug: never empty.
        org: None: any organization, the oldest match.
        version: empty, `latest`, a tag or a hash; means something for skills alone.
    """

    slug: str
    org: str | None
    version: str


def lookup_of(reference: ApiResourceReference, spec: KindSpec[R]) -> Lookup:
    """Read a reference to a resource of a kind. Scope is not looked at. (Rule of the Stigmer server.)

    Raises:
        InvalidRequestError: it has no slug, or names another kind.
    """
    if not spec.accepts_reference(reference.kind):
        raise InvalidRequestError.of(
            "kind", f"must be {spec.name} ({spec.number}) or left out, not {_named(reference.kind)}"
        )
    if not reference.slug:
        raise InvalidRequestError.of("slug", "must name a resource")
    return Lookup(reference.slug, reference.org or None, reference.version)


def _named(kind: int) -> str:
    known = kind in ApiResourceKind.values()
    return f"{ApiResourceKind.Name(kind)} ({kind})" if known else str(kind)  # type: ignore[arg-type]
