"""References."""

from __future__ import annotations

import pytest

from agent_runner.domain.kinds import ENVIRONMENT, SKILL
from agent_runner.domain.references import Lookup, lookup_of
from agent_runner.errors import InvalidRequestError
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference


def test_a_reference_says_where_to_look() -> None:
    reference = ApiResourceReference(slug="pdf", org="acme", version="v1", kind=43)  # type: ignore[arg-type]
    assert lookup_of(reference, SKILL) == Lookup("pdf", "acme", "v1")
    assert lookup_of(ApiResourceReference(slug="pdf"), SKILL) == Lookup("pdf", None, "")


@pytest.mark.parametrize(
    ("reference", "field", "text"),
    [
        (ApiResourceReference(), "slug", "must name"),
        (ApiResourceReference(slug="a", kind=43), "kind", "skill"),  # type: ignore[arg-type]
        (ApiResourceReference(slug="a", kind=99), "kind", "99"),  # type: ignore[arg-type]
    ],
)
def test_what_is_wrong_with_a_reference_is_told(
    reference: ApiResourceReference, field: str, text: str
) -> None:
    with pytest.raises(InvalidRequestError, match=text) as raised:
        lookup_of(reference, ENVIRONMENT)
    assert raised.value.violations[0].field == field
