"""Sessions to the MCP servers of one execution: opened at once, each with its own time limit."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import structlog

from agent_runner.domain.mcp_servers import McpServerPlan
from agent_runner.errors import McpServerError
from agent_runner.ports.mcp import McpTools
from agent_runner.ports.sandboxes import Sandbox

if TYPE_CHECKING:
    from agent_runner.adapters.mcp.sessions import OpenServer

log = structlog.get_logger(__name__)

_START_TIMEOUT: Final = timedelta(seconds=30)
_CLOSE_TIMEOUT: Final = 10.0
_PATIENCE: Final = 0.1
"""Seconds the end of an execution, or its cancel, waits for servers to end; after that they do so by
themselves, and are killed when they do not."""


class McpSessions:
    """A `McpConnector`.

    Each session lives in a task of its own, because what the client library opens must be closed in
    the task that opened it.
    """

    def __init__(
        self,
        *,
        start_timeout: timedelta = _START_TIMEOUT,
        on_progress: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Nothing is imported before the first server is opened: most agents have none.

        Args:
            start_timeout: how long a server may take to tell its tools.
            on_progress: takes lines of progress, in the context (variables) of the call they belong to.
        """
        self._start_timeout = start_timeout
        self._on_progress = on_progress
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self, plans: Sequence[McpServerPlan], sandbox: Sandbox) -> AsyncIterator[McpTools]:
        if not plans:
            yield McpTools()
            return
        sessions = await asyncio.to_thread(importlib.import_module, "agent_runner.adapters.mcp.sessions")
        servers: list[OpenServer] = [sessions.OpenServer(plan, sandbox) for plan in plans]
        try:
            await asyncio.gather(*(server.start(self._start_timeout) for server in servers))
            yield self._tools(plans, servers)
        finally:
            closing = asyncio.ensure_future(_close(servers))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            await asyncio.wait([closing], timeout=_PATIENCE)

    async def aclose(self) -> None:
        """Return when every session is closed and every process has ended."""
        if self._closing:
            await asyncio.wait(self._closing)

    def _tools(self, plans: Sequence[McpServerPlan], servers: Sequence[OpenServer]) -> McpTools:
        from agent_runner.adapters.mcp.tools import offer

        warnings = []
        for server in servers:
            if server.connection is None and server.plan.required:
                raise McpServerError(server.plan.name, server.problem)
            if server.connection is None:
                log.info("server cannot be used", server=server.plan.name, reason=server.problem)
                warnings.append(f"MCP server {server.plan.name!r} cannot be used: {server.problem}.")
        offered, more = offer([s.connection for s in servers if s.connection is not None], self._on_progress)
        told = {(tool.server, tool.name) for tool in offered}
        for server in servers:
            missing = [n for n in server.plan.enabled_tools if (server.plan.name, n) not in told]
            if missing and server.connection is not None:
                more.append(f"MCP server {server.plan.name!r} has no tool {', '.join(missing)}.")
        return McpTools(tuple(offered), tuple(plans), (*warnings, *more))


async def _close(servers: Sequence[OpenServer]) -> None:
    await asyncio.gather(*(server.close(_CLOSE_TIMEOUT) for server in servers))
