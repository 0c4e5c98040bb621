"""Results of tools kept, or not, by one attempt."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable

import pytest

from agent_runner.domain.masking import MASK, Masker
from agent_runner.domain.tool_results import LONGEST, SHOWN_OF_KEPT
from agent_runner.errors import (
    AgentRunnerError,
    FailedPreconditionError,
    FencedError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from agent_runner.ports.status_sinks import Grant
from agent_runner.ports.tool_results import ResultToKeep
from agent_runner.runner.tool_results import KeptResults
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution

SECRET = "canary-4711-abcdef"
LONG = f"begin {SECRET} " + f"ü{SECRET}\n" * 40_000 + "end"


class MemoryResults:
    """`ToolResults` in memory; `refuse` may raise before anything is kept."""

    def __init__(self, refuse: Callable[[], None] = lambda: None, *, keeps: bool = True) -> None:
        self.kept: dict[tuple[str, str], bytes] = {}
        self.asked: list[ResultToKeep] = []
        self._refuse = refuse
        self._keeps = keeps

    async def put(self, result: ResultToKeep, pieces: Iterable[bytes]) -> str:
        self.asked.append(result)
        self._refuse()
        if not self._keeps:
            return ""
        data = b"".join(pieces)
        assert (len(data), hashlib.sha256(data).digest()) == (result.size, result.sha256)
        self.kept[result.execution_id, result.tool_call_id] = data
        return f"executions/{result.execution_id}/{result.sha256.hex()}"

    async def get(self, execution_id: str, tool_call_id: str) -> AsyncIterator[bytes]:
        self._refuse()
        data = self.kept[execution_id, tool_call_id]
        for start in range(0, len(data), 1001):  # cuts characters in two
            yield data[start : start + 1001]


def keeper(
    store: MemoryResults | None,
    warnings: list[str] | None = None,
    *,
    token: str = "token",
    before: str = "",
    patience: float = 0,
) -> KeptResults:
    execution = AgentExecution()
    if before:
        execution.status.tool_calls.add(id=before, artifact_key="executions/aex-1/x")
    grant = Grant(attempt=3, execution=execution, token=token)
    told = warnings if warnings is not None else []
    return KeptResults(store, "aex-1", grant, Masker([SECRET]), told.extend, patience=patience)


def raising(*errors: AgentRunnerError) -> Callable[[], None]:
    left = list(errors)

    def refuse() -> None:
        if left:
            raise left.pop(0)

    return refuse


async def test_a_long_result_is_kept_masked_before_its_ends_are_shown() -> None:
    store, warnings = MemoryResults(), list[str]()

    shown = await keeper(store, warnings).shown("call-1", LONG)

    whole = LONG.replace(SECRET, MASK)
    assert store.kept["aex-1", "call-1"].decode() == whole
    assert (store.asked[0].attempt, store.asked[0].token) == (3, "token")
    assert "token" not in repr(store.asked[0]).replace("tool_call_id", "")
    assert shown.artifact_key.startswith("executions/aex-1/")
    assert len(shown.text.encode()) <= SHOWN_OF_KEPT and SECRET not in shown.text
    assert shown.text.startswith(f"begin {MASK}") and shown.text.endswith("end")
    assert "agent-runner tool-output aex-1 call-1" in shown.text
    assert not warnings


async def test_what_fits_an_event_goes_nowhere_else() -> None:
    store = MemoryResults()

    shown = await keeper(store).shown("call-1", "x" * LONGEST)

    assert (shown.text, shown.artifact_key, store.asked) == ("x" * LONGEST, "", [])


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError("The artifact store is away."),
        FailedPreconditionError("It has ended."),
        PermissionDeniedError("Not yours."),
        NotFoundError("AgentExecution", "aex-1"),
    ],
)
async def test_a_result_that_cannot_be_kept_is_cut_with_a_warning(error: AgentRunnerError) -> None:
    warnings = list[str]()

    shown = await keeper(MemoryResults(raising(error)), warnings).shown("call-1", LONG)

    assert not shown.artifact_key and SECRET not in shown.text
    assert LONGEST - 300 < len(shown.text.encode()) <= LONGEST
    assert "bytes left out: they were not kept ...]" in shown.text
    (warning,) = warnings
    assert "was not kept whole" in warning and str(error) in warning


async def test_a_store_that_is_away_for_a_moment_is_asked_again() -> None:
    store = MemoryResults(raising(UnavailableError("away"), UnavailableError("away")))

    assert (await keeper(store, patience=60).shown("call-1", LONG)).artifact_key
    assert len(store.asked) == 3 and store.kept


async def test_an_attempt_that_was_replaced_ends_here() -> None:
    with pytest.raises(FencedError):
        await keeper(MemoryResults(raising(FencedError("aex-1", 3, 4)))).shown("call-1", LONG)


@pytest.mark.parametrize("kind", ["no store", "no token", "an older server"])
async def test_where_nothing_keeps_results_they_are_cut_and_nobody_is_warned(kind: str) -> None:
    warnings = list[str]()
    store = None if kind == "no store" else MemoryResults(keeps=kind != "an older server")
    kept = keeper(store, warnings, token="" if kind == "no token" else "token")

    shown = await kept.shown("call-1", LONG)

    assert not shown.artifact_key and not warnings and SECRET not in shown.text
    assert len(shown.text.encode()) <= LONGEST and " bytes left out ...]" in shown.text
    assert await kept.whole("call-1", shown.text) == shown.text


async def test_a_resumed_turn_gets_what_an_earlier_attempt_kept() -> None:
    store = MemoryResults()
    shown = await keeper(store).shown("call-1", LONG)

    again = keeper(store, before="call-1")

    assert await again.whole("call-1", shown.text) == LONG.replace(SECRET, MASK)
    assert await again.whole("call-2", "short") == "short"


async def test_a_kept_result_that_is_gone_leaves_its_ends_with_a_warning() -> None:
    warnings = list[str]()
    kept = keeper(MemoryResults(raising(NotFoundError("Result", "x"))), warnings, before="call-1")

    assert await kept.whole("call-1", "its ends") == "its ends"
    assert "ends of a tool's earlier result" in warnings[0]
