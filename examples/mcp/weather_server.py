"""An MCP server over streamable HTTP with made-up weather: `python examples/mcp/weather_server.py [PORT]`."""

from __future__ import annotations

import sys

from mcp.server.fastmcp import Context, FastMCP

server = FastMCP("weather", host="127.0.0.1", log_level="CRITICAL")
KEY = "not-a-real-key"


@server.tool()
def forecast(city: str, ctx: Context) -> str:  # type: ignore[type-arg]
    """The weather of tomorrow in a city."""
    request = ctx.request_context.request
    if request is None or request.headers.get("X-Api-Key") != KEY:
        raise ValueError("The key in the header X-Api-Key is wrong.")
    return f"Tomorrow in {city}: 50 degrees Fahrenheit, {len(city)} hours of rain."


@server.tool()
def shut_down() -> str:
    """Not for agents: `enabledTools` leaves it out."""
    return "no"


if __name__ == "__main__":
    server.settings.port = int(sys.argv[1]) if len(sys.argv) > 1 else 8931
    server.run(transport="streamable-http")
