"""How a tool call is to be shown: the component a client draws for it.

The component types are those the Stigmer clients know; names are matched as a whole, or by the
words noted here, never by substrings of longer words.
"""

from __future__ import annotations

import re

from ai.stigmer.agentic.agentexecution.v1.api_pb2 import ComponentMetadata

AGENT_GROUP = "main-agent-tools"
SUB_AGENT_GROUP = "sub-agent-tools"

_BY_NAME = {
    **dict.fromkeys(("execute", "shell", "bash", "sh"), "terminal"),
    **dict.fromkeys(("read", "read_file", "view_file", "cat"), "preview"),
    **dict.fromkeys(
        ("write", "write_file", "edit", "edit_file", "str_replace", "strreplace", "editnotebook"), "editor"
    ),
    **dict.fromkeys(("grep", "glob", "semantic_search", "semanticsearch", "find", "search"), "search"),
    **dict.fromkeys(("ls", "delete", "delete_file"), "filesystem"),
    **dict.fromkeys(("write_todos", "todowrite"), "todo"),
    "task": "subagent",
}
_BY_WORD = (
    (frozenset({"kubectl", "k8s"}), "kubernetes"),
    (frozenset({"browser"}), "browser"),
    (frozenset({"git"}), "git"),
)


def component_type(tool_name: str) -> str:
    """The component for a tool: `terminal`, `preview`, `editor`, … or `tool` for unknown ones."""
    name = tool_name.lower()
    if name in _BY_NAME:
        return _BY_NAME[name]
    words = set(re.split(r"[^a-z0-9]+", name))
    for known, component in _BY_WORD:
        if words & known:
            return component
    if {"web", "search"} <= words:
        return "web-search"
    return "terminal" if name.startswith("execute") else "tool"


def component_metadata(tool_name: str, *, of_sub_agent: bool) -> ComponentMetadata:
    return ComponentMetadata(
        component_type=component_type(tool_name),
        component_group=SUB_AGENT_GROUP if of_sub_agent else AGENT_GROUP,
    )
