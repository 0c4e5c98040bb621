"""LangSmith's hooks around every middleware, left out when nobody traces.

LangChain wraps each hook of each middleware in LangSmith's `traceable`, which makes a task per hook and
goes to a thread and back twice, tracing or not: a twelfth of the CPU of a turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from langchain.agents import factory
from langsmith.utils import tracing_is_enabled

Hook = TypeVar("Hook", bound=Callable[..., Any])

_NAME = "traceable"
_original = getattr(factory, _NAME, None)


def trace_when_asked() -> None:
    """Let agents that are built from here on be traced only where tracing is on by then.

    Holds for the process; safe to repeat. A LangChain that has no such hooks is left as it is.
    """
    if _original is not None:
        setattr(factory, _NAME, _traceable)


def _traceable(**options: Any) -> Callable[[Hook], Hook]:
    if tracing_is_enabled():
        assert _original is not None
        decorate: Callable[[Hook], Hook] = _original(**options)
        return decorate
    return lambda hook: hook
