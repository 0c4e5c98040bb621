"""How a runner gets the variables of the execution it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ai.stigmer.agentic.mcpserver.v1.spec_pb2 import McpServerSpec


@dataclass(frozen=True, slots=True)
class ResolvedEnvironment:
    """The variables of one execution, in clear.

    Attributes:
        values: name to value.
        secret_names: those to be masked in everything people or models read.
        missing: names that are required and have no value; the execution cannot run with any.
        mcp_servers: `McpServer` resources the agent names without a definition, by name.
    """

    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret_names: frozenset[str] = frozenset()
    missing: tuple[str, ...] = ()
    mcp_servers: Mapping[str, McpServerSpec] = field(default_factory=dict, repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every value to be masked, those of the MCP servers included."""
        of_servers = (
            value.value
            for server in self.mcp_servers.values()
            for value in server.env_spec.data.values()
            if value.is_secret and value.value
        )
        return (*(v for n, v in self.values.items() if n in self.secret_names), *of_servers)


class EnvironmentResolver(Protocol):
    """Asks the control plane."""

    async def resolve(self, execution_id: str, attempt: int, token: str) -> ResolvedEnvironment | None:
        """The environment of an execution this worker holds.

        None from a server that has no such thing: its runners read the layers, and merge them.

        Args:
            token: as in the `Grant` of the attempt.

        Raises:
            PermissionDeniedError: the token is not that attempt's.
            FencedError: another attempt holds it.
            FailedPreconditionError: it has ended, or a reference of its instance leads nowhere.
            UnavailableError: the control plane cannot be reached; try again.
        """
        ...
