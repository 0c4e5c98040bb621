"""Breaks the product on purpose and counts what got lost: `make chaos`, or `python -m chaos --help`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from chaos import faults

Scenario = Callable[[Path, argparse.Namespace], Awaitable[list[str]]]


async def _faults(folder: Path, options: argparse.Namespace) -> list[str]:
    plan = faults.Plan(
        seed=options.seed,
        faults=options.count or 200,
        gap=options.gap,
        sessions=options.sessions or 6,
        workers=options.workers,
        reconnects=options.reconnects,
        only=options.only,
    )
    return (await faults.storm(folder, plan)).problems


SCENARIOS: dict[str, Scenario] = {"faults": _faults}


def main() -> None:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=0, help="faults, cancels, messages, or rounds")
    parser.add_argument("--sessions", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gap", type=float, default=2.0, help="seconds between faults, on average")
    parser.add_argument("--reconnects", type=int, default=1000, help="at least so many, of watchers")
    parser.add_argument("--only", default="", help="one kind of fault alone")
    parser.add_argument("--keep", type=Path, help="work in this directory and leave it there")
    options = parser.parse_args()
    problems = asyncio.run(_run(SCENARIOS[options.scenario], options))
    print(f"{len(problems)} promises broken" if problems else "every promise kept", flush=True)
    sys.stdout.flush()
    # This process has opened a Temporal client, which can abort in the interpreter's exit.
    os._exit(1 if problems else 0)


async def _run(scenario: Scenario, options: argparse.Namespace) -> list[str]:
    if options.keep:
        await asyncio.to_thread(options.keep.mkdir, parents=True, exist_ok=True)
        return await scenario(options.keep, options)
    with tempfile.TemporaryDirectory(prefix="agent-runner-chaos-") as scratch:
        return await scenario(Path(scratch), options)


if __name__ == "__main__":
    main()
