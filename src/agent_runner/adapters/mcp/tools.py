"""From what an MCP server offers to tools an agent can use."""

from __future__ import annotations

import asyncio
import contextvars
import json
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import anyio
import httpx
from jsonschema import Draft202012Validator, SchemaError
from langchain_core.tools import BaseTool
from langchain_mcp_adapters.interceptors import MCPToolCallRequest
from langchain_mcp_adapters.tools import convert_mcp_tool_to_langchain_tool
from mcp import ClientSession, McpError, types

from agent_runner.adapters.mcp.transports import Faults
from agent_runner.ports.mcp import OfferedTool

MOST_TOOLS: Final = 256
_MOST_IMAGE: Final = 5 << 20
_MOST_SCHEMA: Final = 64 << 10
_MOST_DESCRIPTION: Final = 8192
_MOST_NAME: Final = 64
"""Longest name of a tool the providers of models take."""
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_-]")
_BUILT_IN: Final = frozenset(
    {"execute", "ls", "read_file", "write_file", "edit_file", "glob", "grep", "task", "write_todos"}
)

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Connection:
    """A server that has answered."""

    server: str
    session: ClientSession = field(repr=False)
    faults: Faults = field(repr=False)
    timeout: timedelta
    tools: Sequence[types.Tool] = ()


def offer(connections: Sequence[Connection], on_progress: Progress) -> tuple[list[OfferedTool], list[str]]:
    """The tools of all servers, and warnings for those that cannot be used.

    A name several servers use, or an engine has built in, gets the server's in front.
    """
    warnings: list[str] = []
    usable = [(c, tool) for c in connections for tool in _usable(c, warnings)]
    count = Counter(_plain(tool.name) for _, tool in usable)
    offered, taken = [], set[str]()
    for connection, tool in usable:
        name = _plain(tool.name)
        if count[name] > 1 or name in _BUILT_IN:
            name = _plain(f"{connection.server}_{tool.name}")
        if name in taken:
            warnings.append(f"MCP server {connection.server!r}: a second tool called {name!r} is left out.")
            continue
        taken.add(name)
        offered.append(
            OfferedTool(connection.server, tool.name, _converted(connection, tool, name, on_progress))
        )
    return offered, warnings


def _usable(connection: Connection, warnings: list[str]) -> Iterable[types.Tool]:
    seen = set[str]()
    for tool in connection.tools[:MOST_TOOLS]:
        problem = "it is offered twice" if tool.name in seen else _problem(tool)
        seen.add(tool.name)
        if problem:
            warnings.append(
                f"MCP server {connection.server!r}: tool {tool.name[:80]!r} is left out: {problem}."
            )
        else:
            yield tool
    if len(connection.tools) > MOST_TOOLS:
        left_out = len(connection.tools) - MOST_TOOLS
        warnings.append(f"MCP server {connection.server!r}: {left_out} tools are left out; {MOST_TOOLS} fit.")


def _problem(tool: types.Tool) -> str:
    """Why a model's provider would refuse the tool; empty when it would not."""
    if not _plain(tool.name):
        return "it has no name"
    try:
        if len(json.dumps(tool.inputSchema)) > _MOST_SCHEMA:
            return f"the schema of its arguments is longer than {_MOST_SCHEMA} characters"
        Draft202012Validator.check_schema(tool.inputSchema)
    except SchemaError as error:
        return f"the schema of its arguments is wrong: {error.message[:200]}"
    except RecursionError:
        return "the schema of its arguments is nested too deep"
    if tool.inputSchema.get("type") != "object":
        return "its arguments are no object"
    return ""


def _plain(name: str) -> str:
    return _NOT_IN_NAMES.sub("_", name)[:_MOST_NAME]


def _converted(connection: Connection, tool: types.Tool, name: str, on_progress: Progress) -> BaseTool:
    # Some providers ask for `properties`, which MCP leaves out where there are none.
    schema = {"properties": {}, **tool.inputSchema}
    shown = tool.model_copy(
        update={"description": (tool.description or tool.name)[:_MOST_DESCRIPTION], "inputSchema": schema}
    )
    caller = _Caller(connection, on_progress)

    async def call(request: MCPToolCallRequest, handler: object) -> types.CallToolResult:
        return await caller.call(request.name, request.args)

    converted = convert_mcp_tool_to_langchain_tool(
        connection.session, shown, tool_interceptors=[call], server_name=connection.server
    )
    converted.name = name
    return converted


class _Caller:
    """Calls the tools of one server. Whatever goes wrong is a result the model can read."""

    def __init__(self, connection: Connection, on_progress: Progress) -> None:
        self._connection = connection
        self._on_progress = on_progress

    async def call(self, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        try:
            return for_model(await self._answer(name, arguments))
        except TimeoutError:
            seconds = self._connection.timeout.total_seconds()
            return _failed(f"The tool was silent for {seconds:g} s and was cancelled.")
        except McpError as error:
            return _failed(self._explained(error.error.message))
        except (anyio.ClosedResourceError, anyio.BrokenResourceError, httpx.HTTPError) as error:
            return _failed(self._explained(str(error) or "the connection is closed"))
        except RuntimeError as error:
            # Of the client library: the result does not keep the schema the server gave.
            return _failed(str(error)[:2000])

    async def _answer(self, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        session = self._connection.session
        request_id: int | None = None
        # Progress comes in on the task of the session, and belongs to the call that waits here.
        here = contextvars.copy_context()
        loop, limit = asyncio.get_running_loop(), self._connection.timeout.total_seconds()
        try:
            async with asyncio.timeout(limit) as silence:

                async def progressed(progress: float, total: float | None, message: str | None) -> None:
                    silence.reschedule(loop.time() + limit)
                    here.run(self._on_progress, _progress_line(progress, total, message))

                async def asked() -> types.CallToolResult:
                    nonlocal request_id
                    request_id = getattr(session, "_request_id", None)  # the one call_tool takes next
                    return await session.call_tool(name, arguments, progress_callback=progressed)

                return await self._unless_cut_off(asked())
        except (TimeoutError, asyncio.CancelledError):
            if request_id is not None:
                await self._cancel(request_id)
            raise

    async def _unless_cut_off(
        self, answer: Coroutine[Any, Any, types.CallToolResult]
    ) -> types.CallToolResult:
        call = asyncio.ensure_future(answer)
        cut_off = asyncio.ensure_future(self._connection.faults.wait_cut_off())
        try:
            await asyncio.wait({call, cut_off}, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                return call.result()
            raise anyio.BrokenResourceError("the answer was cut off")
        finally:
            call.cancel()
            cut_off.cancel()
            await asyncio.wait({call, cut_off})
            if not call.cancelled():
                call.exception()  # looked at, or the loop would complain that nobody did

    async def _cancel(self, request_id: int) -> None:
        """Tell the server that nobody waits any more; at most a moment, for it may be gone."""
        params = types.CancelledNotificationParams(requestId=request_id, reason="The call was cancelled.")
        notification = types.CancelledNotification(params=params)
        with anyio.move_on_after(1, shield=True):
            try:
                await self._connection.session.send_notification(types.ClientNotification(notification))
            except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                return

    def _explained(self, message: str) -> str:
        fault = self._connection.faults.text
        return f"MCP server {self._connection.server!r}: {message}" + (f" ({fault})" if fault else "")


def for_model(result: types.CallToolResult) -> types.CallToolResult:
    """The result with what models cannot see told in words.

    Text stays whole: messages are bounded, and engines put long results into files.
    """
    content = [_shown(block) for block in result.content]
    return result.model_copy(update={"content": content, "structuredContent": None})


def _shown(block: types.ContentBlock) -> types.ContentBlock:
    if isinstance(block, types.ImageContent) and len(block.data) > _MOST_IMAGE:
        return _told(f"an image of {len(block.data) * 3 // 4} bytes, which is too large to show")
    if isinstance(block, types.AudioContent):
        return _told(f"a sound of type {block.mimeType}, which cannot be passed on")
    if isinstance(block, types.EmbeddedResource):
        resource = block.resource
        if isinstance(resource, types.TextResourceContents):
            return types.TextContent(type="text", text=resource.text)
        return _told(f"the file {resource.uri} of type {resource.mimeType or 'unknown'}")
    if isinstance(block, types.ResourceLink):
        return _told(f"a link to {block.uri}: {block.description or block.name}")
    return block


def _told(text: str) -> types.TextContent:
    return types.TextContent(type="text", text=f"[{text}]")


def _failed(text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], isError=True)


def _progress_line(progress: float, total: float | None, message: str | None) -> str:
    count = f"{progress:g} of {total:g}" if total else f"{progress:g}"
    return f"{count}: {message}\n" if message else f"{count}\n"
