"""MCP clients. Import `connector`; the rest, which costs half a second to import, comes on first use."""
