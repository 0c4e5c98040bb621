"""Tools from MCP servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from agent_runner.domain.mcp_servers import McpServerPlan
from agent_runner.ports.sandboxes import Sandbox


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """One tool of one server.

    Attributes:
        name: as the server tells it.
        tool: for LangChain; its own name may have the server's in front.
    """

    server: str
    name: str
    tool: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class McpTools:
    """What the servers that answered offer, all of it.

    Attributes:
        plans: the servers that were to be opened.
        warnings: what watchers should know: servers and tools that are not there.
    """

    offered: Sequence[OfferedTool] = ()
    plans: Sequence[McpServerPlan] = ()
    warnings: Sequence[str] = ()

    def for_agent(self) -> list[Any]:
        """The tools the agent has chosen."""
        return self._chosen({plan.name: plan.enabled_tools for plan in self.plans})

    def for_sub_agent(self, servers: Sequence[str], selections: Mapping[str, Sequence[str]]) -> list[Any]:
        """The tools of a sub-agent.

        Args:
            servers: names of servers it may use.
            selections: per server the tools it gets; a server without an entry gives the agent's.
        """
        own = {plan.name: plan.enabled_tools for plan in self.plans}
        return self._chosen({name: selections.get(name, own.get(name, ())) for name in servers})

    def _chosen(self, choice: Mapping[str, Sequence[str]]) -> list[Any]:
        return [
            offered.tool
            for offered in self.offered
            if offered.server in choice
            and (not choice[offered.server] or offered.name in choice[offered.server])
        ]


class McpConnector(Protocol):
    """Opens sessions to MCP servers. The adapter passes `tests/integration/test_mcp.py`."""

    def open(self, plans: Sequence[McpServerPlan], sandbox: Sandbox) -> AbstractAsyncContextManager[McpTools]:
        """Open all of them at once; leaving the context closes them and ends their processes.

        A server that cannot be opened in time is a warning, and so is a tool that cannot be used.

        Raises:
            McpServerError: one that is required could not be opened.
        """
        ...
