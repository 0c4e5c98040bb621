"""Counting what a turn uses, sub-agents included, against its limits."""

from __future__ import annotations

from agent_runner.errors import LimitReachedError
from agent_runner.v1.options_pb2 import Limits
from agent_runner.v1.status_pb2 import Usage


class LimitCounter:
    """Counts one turn. Each check comes before the call, so a limit is overshot by one call at most.

    Args:
        used: what earlier attempts used.
        tool_calls: and how many tool calls they began.
    """

    def __init__(self, limits: Limits, used: Usage | None = None, tool_calls: int = 0) -> None:
        self._limits = limits
        self._model_calls = 0
        self._tool_calls = tool_calls
        self._tokens = 0
        self._cost_usd = 0.0
        if used is not None:
            self._model_calls = int(used.model_calls)
            self.used(used)

    def before_model_call(self) -> None:
        """Raises LimitReachedError when no further model call is allowed."""
        limits = self._limits
        if limits.tokens and self._tokens >= limits.tokens:
            raise LimitReachedError("tokens", limits.tokens)
        if limits.cost_usd and self._cost_usd >= limits.cost_usd:
            raise LimitReachedError("cost_usd", limits.cost_usd)
        if limits.model_calls and self._model_calls >= limits.model_calls:
            raise LimitReachedError("model_calls", limits.model_calls)
        self._model_calls += 1

    def before_tool_call(self) -> None:
        """Raises LimitReachedError when no further tool call is allowed."""
        if self._limits.tool_calls and self._tool_calls >= self._limits.tool_calls:
            raise LimitReachedError("tool_calls", self._limits.tool_calls)
        self._tool_calls += 1

    def used(self, usage: Usage) -> None:
        """Add the tokens of one model call."""
        self._tokens += usage.input_tokens + usage.output_tokens
        self._cost_usd += usage.cost_usd
