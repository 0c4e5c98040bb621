"""One MCP server: its transport and session, held open by a task."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Final

import anyio
import httpx
import structlog
from mcp import ClientSession, McpError, types
from pydantic import ValidationError

from agent_runner.adapters.mcp.tools import MOST_TOOLS, Connection
from agent_runner.adapters.mcp.transports import (
    Faults,
    Transport,
    over_events,
    over_pipes,
    over_streamable_http,
)
from agent_runner.domain.mcp_servers import Container, Endpoint, McpServerPlan, Program
from agent_runner.errors import AgentRunnerError, FailedPreconditionError
from agent_runner.ports.processes import KeepsContainers, KeepsProcesses, SandboxProcess
from agent_runner.ports.sandboxes import Sandbox

log = structlog.get_logger(__name__)

_EXPECTED: Final = (
    AgentRunnerError,
    McpError,
    ValidationError,
    httpx.HTTPError,
    httpx.InvalidURL,
    OSError,
    RuntimeError,
    anyio.ClosedResourceError,
    anyio.BrokenResourceError,
)
"""What opening a server can end with; anything else is a fault of ours."""
_MOST_PAGES: Final = 50


class OpenServer:
    """Opens a server, keeps it open until told, and closes it; in a task of its own throughout."""

    def __init__(self, plan: McpServerPlan, sandbox: Sandbox) -> None:
        self.plan = plan
        self.connection: Connection | None = None
        self.problem = plan.problem
        self._sandbox = sandbox
        self._opened = asyncio.Event()
        self._done = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self, timeout: timedelta) -> None:
        """Return when the server has told its tools, or when `problem` says why it has not."""
        if self.plan.reach is None:
            return
        self._task = asyncio.ensure_future(self._hold())
        self._task.add_done_callback(lambda _: self._opened.set())
        try:
            await asyncio.wait_for(self._opened.wait(), timeout.total_seconds())
        except TimeoutError:
            self.problem = f"it did not answer within {timeout.total_seconds():g} s"
            self._task.cancel()

    async def close(self, timeout: float) -> None:
        """End the session and its process. Never raises, and never takes longer than twice `timeout`."""
        if self._task is None:
            return
        self._done.set()
        done, _ = await asyncio.wait([self._task], timeout=timeout)
        if not done:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=timeout)

    async def _hold(self) -> None:
        """Try the transports in turn; the first that answers is held open."""
        for attempt in self._attempts():
            faults = Faults()
            try:
                await attempt(faults)
                return
            except Exception as error:  # noqa: BLE001 - an edge: groups of what strangers' servers cause
                if self.connection is not None:
                    # It was open, and went away; its calls have told so.
                    log.info("server went away", server=self.plan.name, reason=faults.text)
                    return
                self.problem = _explained(error, faults)

    def _attempts(self) -> Iterator[_Attempt]:
        if not isinstance(self.plan.reach, Endpoint):
            yield _Attempt(self, None)
            return
        older_first = self.plan.reach.url.partition("?")[0].rstrip("/").endswith("/sse")
        for older in (older_first, not older_first):
            yield _Attempt(self, older)
            if "HTTP 401" in self.problem or "HTTP 403" in self.problem:
                return  # the other transport would not be let in either, and hide the reason

    async def transport(self, faults: Faults, older: bool | None) -> Transport:
        reach = self.plan.reach
        if isinstance(reach, Endpoint):
            over = over_events if older else over_streamable_http
            return over(reach.url, reach.headers, self.plan.timeout, faults)
        assert reach is not None
        return over_pipes(await self._process(reach), faults)

    async def _process(self, reach: Program | Container) -> SandboxProcess:
        if isinstance(reach, Container):
            if not isinstance(self._sandbox, KeepsContainers):
                raise FailedPreconditionError("docker servers need the sandbox kind docker")
            return await self._sandbox.open_container(
                reach.image, reach.args, env=reach.env, volumes=reach.volumes, network=reach.network
            )
        if not isinstance(self._sandbox, KeepsProcesses):
            raise FailedPreconditionError("this kind of sandbox keeps no processes; use local or docker")
        return await self._sandbox.open_process(reach.argv, env=reach.env, cwd=reach.cwd)

    async def run(self, faults: Faults, older: bool | None) -> None:
        """Open, tell, and stay until told to end."""
        async with AsyncExitStack() as stack:
            received, sent = await stack.enter_async_context(await self.transport(faults, older))
            session = await stack.enter_async_context(ClientSession(received, sent))
            await session.initialize()
            tools = await _tools(session)
            self.connection = Connection(self.plan.name, session, faults, self.plan.timeout, tools)
            self.problem = ""
            self._opened.set()
            await self._done.wait()


class _Attempt:
    """One try to reach a server, by one transport."""

    def __init__(self, server: OpenServer, older: bool | None) -> None:
        self._server = server
        self._older = older

    async def __call__(self, faults: Faults) -> None:
        await self._server.run(faults, self._older)


async def _tools(session: ClientSession) -> Sequence[types.Tool]:
    tools: list[types.Tool] = []
    cursor = None
    for _ in range(_MOST_PAGES):
        params = types.PaginatedRequestParams(cursor=cursor) if cursor else None
        page = await session.list_tools(params=params)
        tools += page.tools
        cursor = page.nextCursor
        if not cursor or len(tools) > MOST_TOOLS:
            break
    return tools


def _explained(error: BaseException, faults: Faults) -> str:
    """What went wrong in a few words; what the server itself was seen doing comes first."""
    if faults.text:
        return faults.text
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, httpx.HTTPStatusError):
        return f"it answered HTTP {error.response.status_code}"  # its own words hold the address, and so keys
    if isinstance(error, httpx.ConnectError):
        return "nobody answers at its address"
    if isinstance(error, ValidationError):
        return "it does not keep to the protocol"
    if not isinstance(error, _EXPECTED):
        log.warning("server failed in an unknown way", exc_info=error)
    return str(error).partition("\n")[0][:500].rstrip(".") or type(error).__name__
