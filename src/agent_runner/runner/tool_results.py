"""Results of tools that are too long for an event: kept elsewhere before the event is told."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import structlog

from agent_runner.domain import tool_results as rules
from agent_runner.domain.masking import Masker
from agent_runner.domain.tool_results import LONGEST, Measured
from agent_runner.errors import AgentRunnerError, FencedError, UnavailableError
from agent_runner.ports.agents import ShownResult
from agent_runner.ports.status_sinks import Grant
from agent_runner.ports.tool_results import ResultToKeep, ToolResults
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import ToolCall

log = structlog.get_logger(__name__)

_PATIENCE: Final = 10.0
"""Seconds after which keeping is not tried again: the tool's call is not over before."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 2.0
_NOT_KEPT: Final = "they were not kept"


class KeptResults:
    """The `ResultKeeper` of one attempt.

    That a result cannot be kept ends neither the call nor the turn: its ends are shown, with a warning.

    Args:
        store: None where nothing keeps them.
        grant: of the attempt. One without token is of a server that keeps no results.
        warn: tells people.
        patience: seconds for which a store that is away is tried again.
    """

    def __init__(
        self,
        store: ToolResults | None,
        execution_id: str,
        grant: Grant,
        masker: Masker,
        warn: Callable[[Iterable[str]], None],
        *,
        patience: float = _PATIENCE,
    ) -> None:
        self._store = store if grant.token else None
        self._execution_id = execution_id
        self._grant = grant
        self._masker = masker
        self._warn = warn
        self._patience = patience
        calls: Iterable[ToolCall] = grant.execution.status.tool_calls
        self._kept = frozenset(call.id for call in calls if call.artifact_key)

    async def shown(self, tool_call_id: str, text: str) -> ShownResult:
        if not rules.is_too_long(text):
            return ShownResult(text)
        measured = await asyncio.to_thread(rules.measure, self._pieces(text))
        if self._store is None:
            return ShownResult(rules.preview(measured, LONGEST))
        try:
            key = await self._keep(self._store, tool_call_id, text, measured)
        except FencedError:
            raise
        except AgentRunnerError as error:
            log.warning(
                "a tool's result was not kept", execution_id=self._execution_id, reason=type(error).__name__
            )
            self._warn([f"A tool's result of {measured.size} bytes was not kept whole: {error}"])
            return ShownResult(rules.preview(measured, LONGEST, _NOT_KEPT))
        if not key:
            return ShownResult(rules.preview(measured, LONGEST))
        return ShownResult(rules.shown_of_kept(measured, self._execution_id, tool_call_id), key)

    async def whole(self, tool_call_id: str, shown: str) -> str:
        if self._store is None or tool_call_id not in self._kept:
            return shown
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        try:
            parts = [decode(part) async for part in self._store.get(self._execution_id, tool_call_id)]
        except AgentRunnerError as error:
            log.warning(
                "a kept result was not read", execution_id=self._execution_id, reason=type(error).__name__
            )
            self._warn([f"The model gets the ends of a tool's earlier result alone: {error}"])
            return shown
        return "".join(parts)

    def _pieces(self, text: str) -> Iterator[bytes]:
        return rules.pieces(text, self._masker.stream() if self._masker else None)

    async def _keep(self, store: ToolResults, call_id: str, text: str, measured: Measured) -> str:
        result = ResultToKeep(
            execution_id=self._execution_id,
            attempt=self._grant.attempt,
            token=self._grant.token,
            tool_call_id=call_id,
            size=measured.kept,
            sha256=measured.sha256,
        )
        loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE
        until = loop.time() + self._patience
        while True:
            try:
                return await store.put(result, rules.kept_of(self._pieces(text)))
            except UnavailableError:
                if loop.time() + pause > until:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
