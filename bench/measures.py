"""What can be measured, by name, and the shapes of the product each is measured in."""

from __future__ import annotations

import contextlib
import importlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bench.plans import Plan
from bench.rows import Row


class On(Enum):
    """What a measure is given: nothing, or processes that are shared with others of the same shape."""

    NOTHING = "nothing"
    ONE_PROCESS = "one_process"
    TWO_PROCESSES = "two_processes"
    CONTROL_PLANE = "control_plane_alone"
    FORGETFUL = "one_process_without_checkpoints"
    FORGETFUL_TWO = "two_processes_without_checkpoints"


@dataclass(frozen=True, slots=True)
class Measure:
    """One name.

    Attributes:
        function: `module:name` below `bench`; imported when it is asked for.
        says: for the help.
        quick: whether it is part of a quick look at everything, in the first of its shapes.
        by_name_only: whether it is left out where nothing is named.
        any_engine: whether it does without deepagents of today, which Graphton's environment lacks.
    """

    function: str
    says: str
    on: tuple[On, ...] = (On.NOTHING,)
    quick: bool = False
    any_engine: bool = False
    by_name_only: bool = False

    def load(self) -> Any:
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(f"bench.{module}"), name)


_ONE, _TWO, _SERVER = (On.ONE_PROCESS,), (On.TWO_PROCESSES,), (On.CONTROL_PLANE,)
_BOTH = (On.ONE_PROCESS, On.TWO_PROCESSES)

MEASURES: dict[str, Measure] = {
    "start-up": Measure("startups:start_up", "stack up; CPU and memory idle, in one process", quick=True),
    "memory": Measure("startups:memory_of_two", "memory idle of control plane and runner, in two processes"),
    "first-event": Measure("latencies:first_event", "create to the agent's first event", _BOTH, quick=True),
    "long-turn": Measure(
        "latencies:long_turn", "a turn of 3 s beside the bare loop, alone", _ONE, quick=True
    ),
    "token-gap": Measure("gaps:token_gap", "what is added to the time between two tokens", quick=True),
    "load": Measure(
        "loads:load", "many executions at once: rate, latencies, CPU of each process", _BOTH, quick=True
    ),
    "no-checkpoints": Measure(
        "loads:without_checkpoints",
        "CPU above the bare loop, 20 at once, without checkpoints",
        (On.FORGETFUL, On.FORGETFUL_TWO),
        quick=True,
    ),
    "updates": Measure("updates:durable_updates", "durable updates a second from 50 executions", quick=True),
    "updates-grpc": Measure(
        "updates:updates_over_grpc", "durable events a second by AppendEvents over gRPC", _SERVER
    ),
    "watchers": Measure(
        "watching:watchers", "events a second to 100 watchers of one execution", _SERVER, quick=True
    ),
    "bytes": Measure(
        "traffic:bytes_sent", "bytes a runner sends over the final state; its largest message", quick=True
    ),
    "history": Measure("traffic:history", "Temporal history after many tool rounds", _ONE, quick=True),
    "checkpoints": Measure("checkpoints:checkpoints", "bytes of the checkpoints of a short turn", quick=True),
    "cancel": Measure(
        "latencies:cancels", "cancel to CANCELLED, our Temporal and another one", _ONE, quick=True
    ),
    "crash": Measure("crashes:crash", "SIGKILL of a runner to running on another"),
    "agents": Measure("agents:building", "CPU to make an agent, on the engine that is here", any_engine=True),
    "sandbox": Measure("sandbox:commands_and_files", "a command and a file in a sandbox"),
    "masking": Measure("masking:masking", "CPU of masking secrets"),
    "skills": Measure("skills:skills", "what ten skills add to a turn", _ONE),
    "profile": Measure(
        "profiles:profile",
        "CPU of a turn by package, beside the bare loop's (only by its name)",
        by_name_only=True,
    ),
}


async def measure(
    chosen: Sequence[Measure], folder: Path, plan: Plan, report: Callable[[Row], None]
) -> list[Row]:
    """Measure what was chosen, one thing at a time; processes that are shared are started once.

    What fails becomes a row that says so, and the others are measured all the same.
    """
    rows: list[Row] = []
    for shape in On:
        those = [found for found in chosen if shape in found.on]
        if not those:
            continue
        async with contextlib.AsyncExitStack() as stack:
            given: list[Any] = []
            if shape is not On.NOTHING:
                start = getattr(importlib.import_module("bench.stacks"), shape.value)
                given = [await stack.enter_async_context(start(folder / shape.value))]
            for found in those:
                own = folder / f"{shape.value}-{found.function.replace(':', '-')}"
                own.mkdir()
                for row in await _rows(found, [*given, own, plan]):
                    report(row)
                    rows.append(row)
    return rows


async def _rows(found: Measure, given: Sequence[Any]) -> list[Row]:
    try:
        rows: list[Row] = await found.load()(*given)
    # The edge of one measurement: minutes of others must not be lost with it.
    except Exception as error:  # noqa: BLE001 (told, with its traceback, and fails the run)
        traceback.print_exc()
        return [Row(f"not measured: {found.says}", 0, "", note=repr(error), failed=True)]
    return rows
