"""`agent-runner`, but for one part of its runners: for measuring what that part costs.

    python -m bench.altered up|worker …

takes the commands of the product and does what it does, with what these variables say:

- `BENCH_CHECKPOINTS=off`: agents remember nothing, and the engine makes no checkpoints.
- `BENCH_PROFILE=FILE`: a first SIGUSR1 begins a profile, a second one writes it.
- `BENCH_GAPS=FILE`: each scripted model call adds a line to the file, the times between its pieces.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from agent_runner.adapters.agents.deepagents import factory
from agent_runner.bootstrap import runner as bootstrap
from agent_runner.ports.agents import Turn
from agent_runner.runner.attempts import Parts
from bench.profiles import PROFILE, profile_on_signal

CHECKPOINTS, GAPS = "BENCH_CHECKPOINTS", "BENCH_GAPS"


class _Empty:
    """A saver in which nothing is ever found."""

    async def aget_tuple(self, config: object) -> None:
        return None


class NoCheckpoints:
    """The port `Checkpoints` for agents that remember nothing."""

    saver = _Empty()

    async def hold(self, turn: Turn) -> dict[str, object]:
        return {}

    async def prune(self, thread_id: str, *, keep: int) -> int:
        return 0

    async def delete(self, thread_id: str) -> None:
        return None

    async def aclose(self) -> None:
        return None


def _forgetful(make: Any, **options: Any) -> Any:
    """A deep agent without a checkpointer; when to write checkpoints cannot be said of it."""
    graph = make(**{**options, "checkpointer": None})
    stream = graph.astream
    graph.astream = lambda *given, durability, **more: stream(*given, **more)
    return graph


def alter(parts: Parts) -> Parts:
    """The parts of a runner, with those replaced which the variables name."""
    if os.environ.get(CHECKPOINTS) == "off":
        module: Any = factory
        module.create_deep_agent = partial(_forgetful, module.create_deep_agent)
        kept = NoCheckpoints()
        parts = replace(parts, agents=factory.DeepAgentsFactory(kept), checkpoints=kept)
    if path := os.environ.get(GAPS):
        from bench.timed_models import TimedModels

        parts = replace(parts, models=TimedModels(parts.models, Path(path)))
    return parts


def main() -> None:
    made = bootstrap.parts

    @asynccontextmanager
    async def parts(*arguments: Any, **options: Any) -> AsyncIterator[Parts]:
        async with made(*arguments, **options) as found:
            yield alter(found)

    bootstrap.parts = parts
    if path := os.environ.get(PROFILE):
        profile_on_signal(Path(path))
    from agent_runner.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
