"""Definitions of MCP servers become plans once the variables are known."""

from __future__ import annotations

from datetime import timedelta

import pytest

from agent_runner.domain.mcp_servers import (
    Container,
    Endpoint,
    McpServerPlan,
    Program,
    plan_servers,
    unknown_servers,
)
from ai.stigmer.agentic.agent.v1.spec_pb2 import AgentSpec, McpServerDefinition
from ai.stigmer.agentic.mcpserver.v1.spec_pb2 import McpServerSpec

VARIABLES = {"TOKEN": "s3cr&t", "TEAM": "a b", "OTHER": "x"}


def plan(definition: McpServerDefinition, **resources: McpServerSpec) -> McpServerPlan:
    (planned,) = plan_servers([definition], resources, VARIABLES)
    return planned


def test_templates_of_a_program_are_filled_and_no_other_variable_is_passed() -> None:
    definition = McpServerDefinition(name="git", enabled_tools=["clone"], required=True)
    definition.stdio.command = "mcp-git"
    definition.stdio.args.extend(["--team", "{{ TEAM }}"])
    definition.stdio.env_placeholders["GIT_TOKEN"] = "Bearer {{TOKEN}}"

    planned = plan(definition)

    assert planned.reach == Program(("mcp-git", "--team", "a b"), {"GIT_TOKEN": "Bearer s3cr&t"})
    assert (planned.enabled_tools, planned.required) == (("clone",), True)
    assert "s3cr&t" not in repr(planned)


def test_templates_of_an_address_are_filled_in_headers_and_query() -> None:
    definition = McpServerDefinition(name="web")
    definition.http.url = "https://example.com/mcp?v=1"
    definition.http.headers["Authorization"] = "Bearer {{TOKEN}}"
    definition.http.query_params["team"] = "{{TEAM}}"

    planned = plan(definition)

    assert planned.reach == Endpoint(
        "https://example.com/mcp?v=1&team=a+b", {"Authorization": "Bearer s3cr&t"}
    )
    assert planned.timeout == timedelta(seconds=30)
    assert "s3cr&t" not in repr(planned)


def test_a_template_nothing_sets_is_a_problem_that_names_it() -> None:
    definition = McpServerDefinition(name="web")
    definition.http.url = "https://example.com"
    definition.http.headers.update({"A": "{{NOPE}}", "B": "{{ALSO}} {{TOKEN}}"})

    planned = plan(definition)

    assert (planned.reach, planned.problem) == (None, "it needs ALSO, NOPE, which nothing sets")


@pytest.mark.parametrize("url", ["ftp://x", "https://", "/local", "{{TOKEN}}"])
def test_what_is_no_address_is_a_problem(url: str) -> None:
    definition = McpServerDefinition(name="web")
    definition.http.url = url

    assert "must begin with http:// or https://" in plan(definition).problem


def test_a_line_break_in_a_header_is_a_problem() -> None:
    definition = McpServerDefinition(name="web")
    definition.http.url = "https://x"
    definition.http.headers["A"] = "b\r\nC: d"

    assert plan(definition).problem == "a header of it has a line break"


def test_a_definition_without_a_server_means_the_resource_of_its_name() -> None:
    spec = McpServerSpec(default_enabled_tools=["list"])
    spec.stdio.command = "files"
    spec.env_spec.data["ROOT"].value = "/workspace"
    spec.env_spec.data["TOKEN"].is_secret = True
    spec.env_spec.data["TEAM"].value = "default"

    planned = plan(McpServerDefinition(name="files"), files=spec)

    assert planned.reach == Program(("files",), {"ROOT": "/workspace", "TOKEN": "s3cr&t", "TEAM": "a b"})
    assert planned.enabled_tools == ("list",)


def test_a_variable_a_resource_needs_and_nobody_sets_is_a_problem() -> None:
    spec = McpServerSpec()
    spec.http.url = "https://x"
    spec.env_spec.data["MISSING"].value = ""

    assert plan(McpServerDefinition(name="x"), x=spec).problem == "it needs MISSING, which nothing sets"


def test_an_unknown_reference_is_a_problem() -> None:
    assert "no McpServer resource has this name" in plan(McpServerDefinition(name="x")).problem


def test_two_servers_of_one_name_are_both_left_out() -> None:
    definitions = [McpServerDefinition(name="a"), McpServerDefinition(name="a")]

    assert [p.problem for p in plan_servers(definitions, {}, {})] == ["two servers have this name"] * 2


def test_a_container_is_planned_and_fixed_ports_are_a_problem() -> None:
    definition = McpServerDefinition(name="box")
    definition.docker.image = "mcp/box:1"
    definition.docker.args.append("{{OTHER}}")
    definition.docker.volumes.add(host_path="/data", container_path="/d", read_only=True)

    assert plan(definition).reach == Container("mcp/box:1", ("x",), {}, (("/data", "/d", True),))
    definition.docker.ports.add(host_port=1, container_port=1)
    assert "ports" in plan(definition).problem


def test_a_server_a_sub_agent_alone_knows_is_told() -> None:
    agent = AgentSpec()
    agent.mcp_servers.add(name="git")
    sub = agent.sub_agents.add(name="helper", mcp_servers=["git", "hub"])
    sub.mcp_tool_selections["lab"].enabled_tools.append("x")

    assert unknown_servers(agent) == [
        "Sub-agent 'helper' names MCP server 'hub', which the agent does not have.",
        "Sub-agent 'helper' names MCP server 'lab', which the agent does not have.",
    ]
