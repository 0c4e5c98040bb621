"""LangSmith's hooks around every middleware, kept from costing threads when nobody traces.

LangChain wraps each hook of each middleware in LangSmith's `traceable`, which goes to a thread and back
twice and makes a task per hook, tracing or not: some twenty hops a model call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any

import langsmith
from langsmith.utils import tracing_is_enabled


def trace_without_threads() -> None:
    """Let the hooks run in place while tracing is off. Holds for the process; safe to repeat."""
    langsmith.set_runtime_overrides(aio_to_thread=_in_place)


async def _in_place(
    to_thread: Callable[..., Awaitable[Any]],
    context: Context,
    function: Callable[..., Any],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if tracing_is_enabled():  # then there is work to do, which may block
        return await to_thread(context, function, *args, **kwargs)
    return context.run(function, *args, **kwargs)
