"""Which MCP servers a run opens and how, once its variables are known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from agent_runner.domain.environments import UNSET
from ai.stigmer.agentic.agent.v1.spec_pb2 import (
    AgentSpec,
    DockerServer,
    HttpServer,
    McpServerDefinition,
    StdioServer,
)
from ai.stigmer.agentic.mcpserver.v1.spec_pb2 import (
    DockerServerConfig,
    HttpServerConfig,
    McpServerSpec,
    StdioServerConfig,
)

_PLACE: Final = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_HTTP_TIMEOUT: Final = timedelta(seconds=30)
"""When a definition names none. (Proto comment of `HttpServer.timeout_seconds`.)"""
_CALL_TIMEOUT: Final = timedelta(minutes=5)
"""How long a tool of a process may be silent; progress it reports counts as a sign of life."""


@dataclass(frozen=True, slots=True)
class Program:
    """A process in the session's sandbox. Nothing of it is in the representation: it may hold secrets."""

    argv: tuple[str, ...] = field(repr=False)
    env: Mapping[str, str] = field(repr=False)
    cwd: str = "/workspace"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address that speaks MCP over HTTP."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Container:
    """An image whose entry point speaks MCP on its standard streams."""

    image: str
    args: tuple[str, ...] = field(repr=False)
    env: Mapping[str, str] = field(repr=False)
    volumes: tuple[tuple[str, str, bool], ...] = ()
    """(path on the host, path inside, read only)."""
    network: str = ""


@dataclass(frozen=True, slots=True)
class McpServerPlan:
    """One server as it is to be opened.

    Attributes:
        reach: None when `problem` says why it cannot be opened.
        enabled_tools: names the agent gets, as the server tells them; empty for all.
        required: the execution fails without it.
        timeout: how long a call may be silent.
    """

    name: str
    reach: Program | Endpoint | Container | None
    enabled_tools: tuple[str, ...] = ()
    required: bool = False
    timeout: timedelta = _CALL_TIMEOUT
    problem: str = ""


class _MissingError(Exception):
    """A template names variables nothing sets."""


def plan_servers(
    definitions: Sequence[McpServerDefinition],
    resources: Mapping[str, McpServerSpec],
    variables: Mapping[str, str],
) -> tuple[McpServerPlan, ...]:
    """What to open for an agent, in the order of its definitions.

    Args:
        resources: by name, for the definitions which do not say how their server is reached. Values of
            their `env_spec` are in clear.
        variables: the merged environment of the execution.
    """
    names = Counter(definition.name for definition in definitions)
    return tuple(
        McpServerPlan(d.name, None, required=d.required, problem="two servers have this name")
        if names[d.name] > 1
        else _planned(d, resources, variables)
        for d in definitions
    )


def unknown_servers(agent: AgentSpec) -> list[str]:
    """A warning for each server a sub-agent names and the agent does not have."""
    known = {server.name for server in agent.mcp_servers}
    return [
        f"Sub-agent {sub.name!r} names MCP server {name!r}, which the agent does not have."
        for sub in agent.sub_agents
        for name in sorted({*sub.mcp_servers, *sub.mcp_tool_selections} - known)
    ]


def _planned(
    definition: McpServerDefinition, resources: Mapping[str, McpServerSpec], variables: Mapping[str, str]
) -> McpServerPlan:
    resource = None if definition.WhichOneof("server_type") else resources.get(definition.name)
    enabled = definition.enabled_tools or (resource.default_enabled_tools if resource else ())
    try:
        if resource is not None:
            reach, timeout = _of_resource(resource, variables)
        else:
            reach, timeout = _of_definition(definition, variables)
    except (_MissingError, ValueError) as error:
        return McpServerPlan(definition.name, None, required=definition.required, problem=str(error))
    return McpServerPlan(
        definition.name, reach, tuple(enabled), definition.required, timeout or _CALL_TIMEOUT
    )


def _of_definition(
    definition: McpServerDefinition, variables: Mapping[str, str]
) -> tuple[Program | Endpoint | Container, timedelta | None]:
    kind = definition.WhichOneof("server_type")
    if kind == "stdio":
        env = _filled(definition.stdio.env_placeholders, variables)
        return _program(definition.stdio, env, variables), None
    if kind == "http":
        return _endpoint(definition.http, variables), _seconds(definition.http.timeout_seconds)
    if kind == "docker":
        env = _filled(definition.docker.env_placeholders, variables)
        return _container(definition.docker, env, variables), None
    raise ValueError("it says not how to reach it, and no McpServer resource has this name")


def _of_resource(
    resource: McpServerSpec, variables: Mapping[str, str]
) -> tuple[Program | Endpoint | Container, timedelta | None]:
    declared = resource.env_spec.data
    defaults = {name: v.value for name, v in declared.items() if v.value not in ("", UNSET)}
    known = {**defaults, **variables}
    missing = sorted(name for name, v in declared.items() if not v.value and name not in known)
    if missing:
        raise _MissingError(_asks_for(missing))
    own = {name: known[name] for name in declared if name in known}
    kind = resource.WhichOneof("server_type")
    if kind == "stdio":
        return _program(resource.stdio, own, known), None
    if kind == "http":
        return _endpoint(resource.http, known), _seconds(resource.http.timeout_seconds)
    if kind == "docker":
        return _container(resource.docker, own, known), None
    raise ValueError("its McpServer resource says not how to reach it")


def _program(
    server: StdioServer | StdioServerConfig, env: Mapping[str, str], variables: Mapping[str, str]
) -> Program:
    argv = (server.command, *(_fill(word, variables) for word in server.args))
    return Program(argv, env, server.working_dir or "/workspace")


def _endpoint(server: HttpServer | HttpServerConfig, variables: Mapping[str, str]) -> Endpoint:
    parts = urlsplit(_fill(server.url, variables))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("its url must begin with http:// or https:// and name a host")
    headers = _filled(server.headers, variables)
    if any(character in word for pair in headers.items() for word in pair for character in "\r\n\0"):
        raise ValueError("a header of it has a line break")
    query = [
        *parse_qsl(parts.query, keep_blank_values=True),
        *_filled(server.query_params, variables).items(),
    ]
    return Endpoint(urlunsplit(parts._replace(query=urlencode(query))), headers)


def _container(
    server: DockerServer | DockerServerConfig, env: Mapping[str, str], variables: Mapping[str, str]
) -> Container:
    if server.ports or server.container_name:
        # It is spoken to on its standard streams; a fixed name or port would let two executions collide.
        raise ValueError("ports and container_name of a docker server are not supported; leave them out")
    volumes = tuple((v.host_path, v.container_path, v.read_only) for v in server.volumes)
    args = tuple(_fill(word, variables) for word in server.args)
    return Container(server.image, args, env, volumes, server.network)


def _filled(templates: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    missing = sorted({name for text in templates.values() for name in _names(text) if name not in variables})
    if missing:
        raise _MissingError(_asks_for(missing))
    return {name: _fill(text, variables) for name, text in templates.items()}


def _fill(text: str, variables: Mapping[str, str]) -> str:
    missing = sorted({name for name in _names(text) if name not in variables})
    if missing:
        raise _MissingError(_asks_for(missing))
    return _PLACE.sub(lambda place: variables[place[1]], text)


def _names(text: str) -> Iterable[str]:
    return _PLACE.findall(text)


def _asks_for(names: Sequence[str]) -> str:
    return f"it needs {', '.join(names)}, which nothing sets"


def _seconds(count: int) -> timedelta:
    return timedelta(seconds=count) if count > 0 else _HTTP_TIMEOUT
