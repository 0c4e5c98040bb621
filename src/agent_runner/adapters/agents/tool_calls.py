"""Around each tool call: the journal, so that what a tool does happens once. Any LangChain engine.

A call is begun in the journal before its tool runs and finished after, durably both times. One whose
tool may run again is only told of, in order with the rest: it waits for nobody. A call an earlier attempt
finished gives the recorded result; one it left open is run again when it changes nothing, and is
otherwise told to the model as interrupted.

A tool that raises does not end the turn: the model reads the error. An `execute` whose command fails is
a finished call, since its result, the output and the exit code, is what was asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import ToolMessage
from langgraph.errors import GraphBubbleUp
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.types import Command

from agent_runner.adapters.agents.answers import unreadable_error
from agent_runner.adapters.agents.events import ended_call, failed_call, result_of, started_call
from agent_runner.adapters.agents.keepable import kept
from agent_runner.adapters.agents.limits import LimitCounter
from agent_runner.adapters.agents.normalizer import SUB_AGENT_TOOL, TODO_TOOL
from agent_runner.adapters.agents.signals import ToolOutput, all_handed_on
from agent_runner.errors import FencedError, LimitReachedError, ModelError, UnavailableError
from agent_runner.ports.agents import (
    NoResultsKept,
    RecordedCall,
    ResultKeeper,
    ShownResult,
    ToolJournal,
    unmasked,
)
from agent_runner.v1.events_pb2 import ExecutionEvent

READ_ONLY_TOOLS = frozenset({"ls", "read_file", "glob", "grep", "read", "search", "think", "list_files"})
# These change nothing but the engine's own state, which a recorded text cannot bring back.
STATE_ONLY_TOOLS = frozenset({TODO_TOOL})
# Prints while it runs. File tools run commands too, whose output nobody asked for.
TALKING_TOOL = "execute"

INTERRUPTED = (
    "This call was interrupted and its outcome is unknown: it may have taken effect, whole or in part. "
    "Look at the state of things before you call it again."
)

TODOS_TWICE = (
    "Error: write_todos replaces the whole list, so it can be called only once in a message. Nothing was "
    "changed. Call it again with the whole list."
)

# What ends the turn, even out of a tool: everything else is for the model to read.
_ENDS_THE_TURN = (GraphBubbleUp, FencedError, LimitReachedError, ModelError, UnavailableError)

# For a cancelled tool; a sandbox's own limit for this is shorter.
_CLEAN_UP_SECONDS = 10.0

Result = ToolMessage | Command[Any]
Handler = Callable[[ToolCallRequest], Awaitable[Result]]


@dataclass(slots=True)
class _Running:
    """The tool call this task of the event loop is in."""

    call_id: str
    name: str
    sub_agent_id: str
    write: Callable[[Any], None]
    printed: bool = False


_running: ContextVar[_Running | None] = ContextVar("agent_runner_tool_call", default=None)
_sub_agent: ContextVar[str] = ContextVar("agent_runner_sub_agent", default="")


def report_output(text: str) -> None:
    """Tell watchers what the command of the running `execute` call prints; else nothing happens."""
    running = _running.get()
    if running is not None and running.name == TALKING_TOOL:
        report_progress(text)


def report_progress(text: str) -> None:
    """Tell watchers how far the running call is, whatever tool it is of; else nothing happens."""
    running = _running.get()
    if running is not None and text:
        running.printed = True
        running.write(ToolOutput(running.call_id, text, running.sub_agent_id))


class ToolCalls(AgentMiddleware[Any, Any, Any]):
    """Keeps the journal of the tool calls of an agent and its sub-agents."""

    def __init__(
        self,
        journal: ToolJournal,
        limits: LimitCounter,
        mask: Callable[[Any], Any] = unmasked,
        results: ResultKeeper | None = None,
    ) -> None:
        """`mask` takes secrets out of what tools give, before the model or a checkpoint gets it."""
        super().__init__()
        self._journal = journal
        self._limits = limits
        self._mask = lambda value: kept(mask(value))
        self._results = results or NoResultsKept()

    async def awrap_tool_call(self, request: ToolCallRequest, handler: Handler) -> Result:
        recorded = self._journal.recorded(request.tool_call["id"] or "")
        if recorded is not None and recorded.finished:
            if request.tool_call["name"] in STATE_ONLY_TOOLS:
                return _masked(await handler(request), self._mask)
            whole = await self._results.whole(request.tool_call["id"] or "", recorded.result)
            return _recorded_result(request, replace(recorded, result=whole))
        if recorded is not None and not _may_run_again(request):
            return await self._interrupted(request)
        if recorded is None:
            self._limits.before_tool_call()
        return await self._run(request, handler)

    async def _run(self, request: ToolCallRequest, handler: Handler) -> Result:
        call = request.tool_call
        running = _Running(call["id"] or "", call["name"], _sub_agent.get(), request.runtime.stream_writer)
        tell = partial(_tell, running) if _may_run_again(request) else partial(self._keep, running)
        asking = str(getattr(_asking_message(request), "id", None) or "")
        await tell(started_call(running.call_id, running.name, call["args"], asking, running.sub_agent_id))
        with _context_of(running):
            result = _masked(await _ran(request, handler), self._mask)
        await tell(await self._ended_call(running, result))
        return result

    async def _ended_call(self, running: _Running, result: Result) -> ExecutionEvent:
        message = _message_of(result, running.call_id)
        text = result_of(message.content) if message is not None else ""
        shown = await self._results.shown(running.call_id, text)
        return ended_call(running.call_id, message, shown, running.sub_agent_id)

    async def _keep(self, running: _Running, event: ExecutionEvent) -> None:
        """Put the beginning or the end of a call into the journal, after all that was streamed before it."""
        if running.printed or event.HasField("tool_call_started"):
            await all_handed_on(running.write)
        if event.HasField("tool_call_started"):
            await self._journal.begin(event)
        else:
            await self._journal.finish(event)

    async def _interrupted(self, request: ToolCallRequest) -> ToolMessage:
        call_id = request.tool_call["id"] or ""
        error = ShownResult(INTERRUPTED)
        await self._journal.finish(failed_call(call_id, error, _sub_agent.get(), interrupted=True))
        return _error(request, INTERRUPTED)


async def _tell(running: _Running, event: ExecutionEvent) -> None:
    running.write(event)


async def _ran(request: ToolCallRequest, handler: Handler) -> Result:
    if unreadable := unreadable_error(request.tool_call["args"]):
        return _error(request, unreadable)
    if request.tool_call["name"] in STATE_ONLY_TOOLS and _asked_twice(request):
        return _error(request, TODOS_TWICE)
    try:
        return await _cancelled_once(handler(request))
    except _ENDS_THE_TURN:
        raise
    except Exception as error:  # noqa: BLE001 (any tool's error is for the model to read)
        words = str(error).strip() or "no further explanation"
        return _error(request, f"Error: {type(error).__name__}: {words}")


def _masked(result: Result, mask: Callable[[Any], Any]) -> Result:
    """The result without secrets: its content, what else a tool hands along, and a Command's update."""
    if isinstance(result, ToolMessage):
        masked = {"content": mask(result.content), "artifact": mask(result.artifact)}
        return result.model_copy(update=masked)
    if not isinstance(result.update, dict):
        return result
    update = {
        name: [_masked(m, mask) if isinstance(m, ToolMessage) else m for m in value]
        if name == "messages"
        else mask(value)
        for name, value in result.update.items()
    }
    return replace(result, update=update)


async def _cancelled_once(work: Awaitable[Result]) -> Result:
    """Run a tool such that it is cancelled once, however often its caller is, and then left to clean up.

    The engine cancels the calls of a turn that ends more than once; the second would interrupt a tool
    that waits for its processes to be gone.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        deadline = asyncio.get_running_loop().time() + _CLEAN_UP_SECONDS
        while not task.done() and (left := deadline - asyncio.get_running_loop().time()) > 0:
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task}, timeout=left)
        raise


@contextmanager
def _context_of(running: _Running) -> Iterator[None]:
    token = _running.set(running)
    inner = _sub_agent.set(running.call_id) if running.name == SUB_AGENT_TOOL else None
    try:
        yield
    finally:
        _running.reset(token)
        if inner is not None:
            _sub_agent.reset(inner)


def _may_run_again(request: ToolCallRequest) -> bool:
    """Whether running a call a second time does no harm.

    A sub-agent does: its own calls are in the journal.
    """
    name = request.tool_call["name"]
    if name in READ_ONLY_TOOLS or name in STATE_ONLY_TOOLS or name == SUB_AGENT_TOOL:
        return True
    if request.tool is None:  # there is no such tool, so nothing runs
        return True
    return bool((request.tool.metadata or {}).get("readOnlyHint"))


def _asking_message(request: ToolCallRequest) -> Any:
    """The message that asks for the call; None when the state does not have it."""
    state = request.state
    messages = state.get("messages", []) if isinstance(state, dict) else getattr(state, "messages", [])
    for message in reversed(messages):
        if any(call["id"] == request.tool_call["id"] for call in getattr(message, "tool_calls", ())):
            return message
    return None


def _asked_twice(request: ToolCallRequest) -> bool:
    """Whether its message asks for the same tool more than once."""
    calls = getattr(_asking_message(request), "tool_calls", ())
    return len([call for call in calls if call["name"] == request.tool_call["name"]]) > 1


def _message_of(result: Result, call_id: str) -> ToolMessage | None:
    """The message of a tool's result, which a Command carries in its update."""
    if isinstance(result, ToolMessage):
        return result
    update = result.update if isinstance(result, Command) else None
    messages = update.get("messages", []) if isinstance(update, dict) else []
    found = [m for m in messages if isinstance(m, ToolMessage) and m.tool_call_id == call_id]
    return found[-1] if found else None


def _recorded_result(request: ToolCallRequest, recorded: RecordedCall) -> ToolMessage:
    if recorded.failed:
        return _error(request, recorded.result)
    call = request.tool_call
    return ToolMessage(content=recorded.result, name=call["name"], tool_call_id=call["id"] or "")


def _error(request: ToolCallRequest, text: str) -> ToolMessage:
    call = request.tool_call
    return ToolMessage(content=text, name=call["name"], tool_call_id=call["id"] or "", status="error")
