"""Putting a model's answer right before it is kept: ids, and tool calls that cannot be read.

Clients parse arguments that end early as far as they go, so half a file would be written; some servers
number their calls anew in each answer, so two calls would be taken for one; and a model may write what
no checkpoint can hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from agent_runner.adapters.agents.keepable import is_keepable, kept

UNREADABLE = "_unreadable_arguments"
"""The only argument of a call whose arguments were no JSON that can be kept: what came instead of them."""

_LONGEST_QUOTE = 500


class ArgumentWatch:
    """Gathers the arguments of tool calls as they stream, to see whether they came whole."""

    def __init__(self) -> None:
        self.unreadable: dict[str, str] = {}
        """Tool call id to what came."""
        self._calls: dict[tuple[str, Any], tuple[str, list[str]]] = {}

    def take(self, message_id: str, chunk: Any) -> None:
        """Look at one piece of a message."""
        for call in chunk.tool_call_chunks:
            place = (message_id, call["index"] if call["index"] is not None else call["id"])
            if call["id"]:
                self._calls[place] = (call["id"], [])
            if place in self._calls:
                self._calls[place][1].append(call["args"] or "")

    def end(self, message_id: str) -> None:
        """The message is whole, or begins anew."""
        for place in [place for place in self._calls if place[0] == message_id]:
            call_id, pieces = self._calls.pop(place)
            arguments = "".join(pieces)
            if not _is_object(arguments):
                self.unreadable[call_id] = arguments
            else:
                self.unreadable.pop(call_id, None)


def unreadable_error(arguments: Mapping[str, Any]) -> str | None:
    """What to tell the model of a call whose arguments could not be read; None for any other."""
    if UNREADABLE not in arguments:
        return None
    quote = str(arguments[UNREADABLE])[:_LONGEST_QUOTE]
    return (
        "Error: the arguments were not a whole JSON object with numbers and nesting within bounds, so "
        f"nothing was run. They began: {quote!r}. Call the tool again with whole arguments; if they were "
        "cut off for their length, do it in smaller pieces."
    )


def repair(
    message: Any, message_id: str, taken: Callable[[str], bool], unreadable: Mapping[str, str]
) -> None:
    """Give the message its id, its calls ids of their own, and mark calls that cannot be read. In place.

    What it says is changed where it could not be kept.

    Args:
        taken: whether a call of this id was there before.
        unreadable: ids of calls whose arguments did not come whole, with what came.
    """
    message.id = message_id
    message.content, message.additional_kwargs = kept(message.content), kept(message.additional_kwargs)
    calls = list(message.tool_calls)
    for invalid in message.invalid_tool_calls:
        args = {UNREADABLE: invalid["args"] or ""}
        calls.append({"name": invalid["name"] or "", "args": args, "id": invalid["id"], "type": "tool_call"})
    if not calls:
        return
    message.invalid_tool_calls = []
    own: set[str] = set()
    for place, call in enumerate(calls):
        old = call["id"] or ""
        if old in unreadable or not is_keepable(call["args"]):
            call["args"] = {UNREADABLE: unreadable.get(old) or str(kept(call["args"]))}
        call["name"], call["args"] = kept(call["name"]), kept(call["args"])
        if not old or old in own or taken(old):
            call["id"] = f"{message_id}-{place + 1}"
            _rename(message.content, old, call["id"])
        own.add(call["id"])
    message.tool_calls = calls


def _rename(content: Any, old: str, new: str) -> None:
    """The id of a call also stands in the block of the content it came from."""
    for block in content if isinstance(content, list) and old else ():
        for key in ("id", "call_id"):
            if isinstance(block, dict) and block.get(key) == old:
                block[key] = new
                return


def _is_object(arguments: str) -> bool:
    if not arguments.strip():  # a call without arguments
        return True
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and is_keepable(found)
