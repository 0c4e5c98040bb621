"""Numbers of one process, for monitoring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agent_runner.domain.kinds import AGENT_EXECUTION, SESSION
from agent_runner.domain.phases import phase_name
from agent_runner.ports.stores import ResourceStore
from agent_runner.services.watching import WatchService
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_PHASE_UNSPECIFIED, ExecutionPhase

_COUNTED: Final[Mapping[str, str]] = {
    "reconciled_started": "Executions whose workflow the reconciler started.",
    "reconciled_restarted": "Of those, executions which had run before and went on from a checkpoint.",
    "reconciled_failed": "Executions the reconciler ended, since their workflows ended without a result.",
    "reconciled_cancelled": "Cancels the reconciler brought to their end.",
    "reconciled_orphans": "Workflows without an execution that were terminated.",
    "reconciled_told": "Waiting callers told by the reconciler.",
    "sessions_removed": "Sessions removed for their age.",
    "logs_compacted": "Event logs compacted after the run.",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One number, for each set of labels; a counter only grows."""

    name: str
    help: str
    counter: bool
    samples: Sequence[tuple[Mapping[str, str], float]]


class Counters:
    """What a process has counted since it began."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str, number: int = 1) -> None:
        """Count; the name is one of those in `_COUNTED`."""
        if name not in _COUNTED:
            raise ValueError(f"nothing named {name!r} is counted")
        self._counts[name] += number

    def metrics(self) -> list[Metric]:
        return [Metric(name, text, True, [({}, self._counts[name])]) for name, text in _COUNTED.items()]


class MetricService:
    """Reads what can be counted now, beside what was counted."""

    def __init__(self, store: ResourceStore, watches: WatchService, counters: Counters) -> None:
        self._store = store
        self._watches = watches
        self._counters = counters

    async def metrics(self) -> list[Metric]:
        phases = [phase for phase in ExecutionPhase.values() if phase != EXECUTION_PHASE_UNSPECIFIED]
        executions = [
            (
                {"phase": phase_name(phase).removeprefix("EXECUTION_").lower()},
                float(await self._store.count(AGENT_EXECUTION.name, fields={"phase": phase_name(phase)})),
            )
            for phase in phases
        ]
        sessions = float(await self._store.count(SESSION.name))
        return [
            Metric("executions", "Executions in the store, by phase.", False, executions),
            Metric("sessions", "Sessions in the store.", False, [({}, sessions)]),
            Metric(
                "watchers", "Who watches or subscribes now.", False, [({}, float(self._watches.watchers))]
            ),
            *self._counters.metrics(),
        ]
