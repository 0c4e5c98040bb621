"""The table of kinds agrees with the API."""

from __future__ import annotations

import pytest

from agent_runner.domain.kinds import API_VERSION, ENVIRONMENT, KINDS, SKILL, KindSpec
from agent_runner.errors import InvalidRequestError
from agent_runner.services.validation import validate
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.commons.apiresource.apiresourcekind.api_resource_kind_pb2 import ApiResourceKind


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.name)
def test_numbers_names_and_constants_are_those_of_the_api(spec: KindSpec[Agent]) -> None:
    assert ApiResourceKind.Name(spec.number) == spec.name  # type: ignore[arg-type]
    assert spec.message.DESCRIPTOR.name == spec.kind
    resource = spec.message(api_version=API_VERSION, kind=spec.kind)
    with pytest.raises(InvalidRequestError) as raised:
        validate(resource)
    assert {violation.field for violation in raised.value.violations} == {"metadata"}


def test_prefixes_are_as_in_the_api() -> None:
    assert {spec.name: spec.id_prefix for spec in KINDS} == {
        "agent": "agt",
        "agent_instance": "ain",
        "session": "ses",
        "agent_execution": "aex",
        "environment": "env",
        "execution_context": "exec",
        "skill": "skl",
        "mcp_server": "mcp",
    }


def test_a_reference_may_leave_the_kind_out_and_mistake_it_where_the_api_does() -> None:
    assert [kind for kind in range(100) if ENVIRONMENT.accepts_reference(kind)] == [0, 52, 53]
    assert [kind for kind in range(100) if SKILL.accepts_reference(kind)] == [0, 43]
