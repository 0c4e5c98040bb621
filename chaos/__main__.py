"""Breaks the product on purpose and counts what got lost: `make chaos`, or `python -m chaos --help`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from chaos import cancels, faults, longs, queues, resumes

Scenario = Callable[[Path, argparse.Namespace], Awaitable[list[str]]]


async def _faults(folder: Path, options: argparse.Namespace) -> list[str]:
    plan = faults.Plan(
        seed=options.seed,
        faults=options.count or 200,
        gap=options.gap,
        sessions=options.sessions or 6,
        workers=options.workers,
        longest=options.longest,
        reconnects=options.reconnects,
        only=options.only,
    )
    return (await faults.storm(folder, plan)).problems


async def _resume(folder: Path, options: argparse.Namespace) -> list[str]:
    return await resumes.resumes(folder, seed=options.seed, count=options.count or 10)


async def _cancel(folder: Path, options: argparse.Namespace) -> list[str]:
    count = options.count or 200
    problems = []
    for pushes in (False,) if options.no_worker_commands else (True, False):
        place = folder / ("pushing" if pushes else "plain")
        await asyncio.to_thread(place.mkdir, exist_ok=True)
        problems += await cancels.cancels(
            place, seed=options.seed, count=count, at_once=options.sessions or 5, pushes=pushes
        )
    return problems


async def _queue(folder: Path, options: argparse.Namespace) -> list[str]:
    return await queues.queues(
        folder,
        seed=options.seed,
        messages=options.count or 10_000,
        sessions=options.sessions or 100,
        workers=options.workers,
    )


async def _long(folder: Path, options: argparse.Namespace) -> list[str]:
    return await longs.long(folder, seed=options.seed, rounds=options.count or 1000, megabytes=50)


SCENARIOS: dict[str, Scenario] = {
    "faults": _faults,
    "resume": _resume,
    "cancel": _cancel,
    "queue": _queue,
    "long": _long,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=0, help="of faults, kills, cancels, messages or rounds")
    parser.add_argument("--sessions", type=int, default=0, help="busy at a time")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gap", type=float, default=2.0, help="seconds between faults, on average")
    parser.add_argument("--longest", type=float, default=9.0, help="seconds a fault may last")
    parser.add_argument("--reconnects", type=int, default=1000, help="at least so many, of watchers")
    parser.add_argument("--only", default="", help="one kind of fault alone")
    parser.add_argument(
        "--no-worker-commands", action="store_true", help="cancel with a Temporal that pushes none, alone"
    )
    parser.add_argument("--keep", type=Path, help="work in this directory and leave it there")
    options = parser.parse_args()
    problems = asyncio.run(_run(SCENARIOS[options.scenario], options))
    for problem in problems:
        print(f"BROKEN: {problem}")
    print(f"{len(problems)} promises broken" if problems else "every promise kept", flush=True)
    sys.stdout.flush()
    # This process has opened a Temporal client, which can abort in the interpreter's exit.
    os._exit(1 if problems else 0)


async def _run(scenario: Scenario, options: argparse.Namespace) -> list[str]:
    running = asyncio.current_task()
    assert running is not None
    # So that nothing that was started is left behind.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    if options.keep:
        await asyncio.to_thread(options.keep.mkdir, parents=True, exist_ok=True)
        return await scenario(options.keep, options)
    with tempfile.TemporaryDirectory(prefix="agent-runner-chaos-") as scratch:
        return await scenario(Path(scratch), options)


if __name__ == "__main__":
    main()
