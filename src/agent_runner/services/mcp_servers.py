"""MCP servers: definitions agents can share."""

from __future__ import annotations

from collections.abc import Mapping

from agent_runner.services.resources import ResourceService
from ai.stigmer.agentic.mcpserver.v1.api_pb2 import McpServer
from ai.stigmer.agentic.mcpserver.v1.status_pb2 import VALIDATION_STATE_VALID


class McpServerService(ResourceService[McpServer]):
    """Keeps MCP servers. What is stored has passed the rules, and its status says so."""

    async def _check(self, resource: McpServer, before: McpServer | None) -> Mapping[str, str]:
        resource.status.validation_state = VALIDATION_STATE_VALID
        resource.status.validation_message = ""
        return {}
