"""A real MCP server for tests: `python mcp_tools_server.py [stdio|streamable-http|sse] [port]`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from mcp.server.fastmcp import Context, FastMCP
from mcp.types import AudioContent, ImageContent, TextContent

server = FastMCP("tools", host="127.0.0.1", log_level="ERROR")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def fail(reason: str) -> str:
    """Always fails."""
    raise ValueError(reason)


@server.tool()
def environment() -> str:
    """Every variable the process has."""
    return "\n".join(f"{name}={value}" for name, value in sorted(os.environ.items()))


@server.tool()
def headers(ctx: Context) -> str:  # type: ignore[type-arg]
    """Headers and query of the request."""
    request = ctx.request_context.request
    return f"{request.headers.get('x-key')} {request.url.query}" if request else "none"


@server.tool()
async def slow(seconds: float, ctx: Context) -> str:  # type: ignore[type-arg]
    """Reports progress every 50 ms."""
    steps = max(1, int(seconds / 0.05))
    for step in range(steps):
        await asyncio.sleep(0.05)
        await ctx.report_progress(step + 1, steps, "working")
    return "done"


@server.tool()
async def sleep(seconds: float) -> str:
    """Says nothing for a while, but leaves a note that it has begun."""
    Path("/workspace/sleeping").write_text("yes")  # noqa: ASYNC240 (nothing else goes on)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        Path("/workspace/cancelled").write_text("yes")  # noqa: ASYNC240 (at the very end)
        raise
    return "slept"


@server.tool()
def large(size: int) -> str:
    """Text of a size."""
    return "x" * size


@server.tool()
def media() -> list[TextContent | ImageContent | AudioContent]:
    """One of each."""
    return [
        TextContent(type="text", text="words"),
        ImageContent(type="image", data="aGk=", mimeType="image/png"),
        AudioContent(type="audio", data="aGk=", mimeType="audio/wav"),
    ]


@server.tool()
def die() -> str:
    """Ends the process."""
    print("last words", file=sys.stderr, flush=True)
    os._exit(3)


@server.tool()
def read_file(path: str) -> str:
    """Has the name of a built-in tool."""
    return f"read {path}"


if __name__ == "__main__":
    if len(sys.argv) > 2:
        server.settings.port = int(sys.argv[2])
    server.run(transport=sys.argv[1] if len(sys.argv) > 1 else "stdio")  # type: ignore[arg-type]
