"""Around Graphton's own tools: names of arguments, and failures told as failures."""

from __future__ import annotations

from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import ToolMessage
from langgraph.prebuilt.tool_node import ToolCallRequest

from agent_runner.adapters.agents.graphton.port import noting_problems
from agent_runner.adapters.agents.tool_calls import Handler, Result

# deepagents' name to Graphton's. A conversation may have begun on the other engine, and models repeat
# what they see in it; prompts and skills are written for either.
_ARGUMENTS = {"file_path": "path", "old_string": "old_text", "new_string": "new_text", "glob": "include"}

# Their results are never the content of files, so the prefix tells.
_TELL_ERRORS = frozenset({"edit", "edit_file", "write", "write_file", "delete", "delete_file", "execute"})


class GraphtonTools(AgentMiddleware[Any, Any, Any]):
    """Takes both engines' argument names, and gives failed calls the status of an error."""

    async def awrap_tool_call(self, request: ToolCallRequest, handler: Handler) -> Result:
        with noting_problems() as problems:
            result = await handler(_renamed(request))
        if not isinstance(result, ToolMessage) or result.status == "error":
            return result
        told = request.tool_call["name"] in _TELL_ERRORS and str(result.content).startswith("Error: ")
        return result.model_copy(update={"status": "error"}) if problems or told else result


def _renamed(request: ToolCallRequest) -> ToolCallRequest:
    if request.tool is None:
        return request
    known = request.tool.args
    args = {
        _ARGUMENTS[name] if name not in known and _ARGUMENTS.get(name) in known else name: value
        for name, value in request.tool_call["args"].items()
    }
    if args.keys() == request.tool_call["args"].keys():
        return request
    return request.override(tool_call={**request.tool_call, "args": args})
