"""Measures the product beside a floor from the same run: `make bench`, or `python -m bench --help`."""

from __future__ import annotations

import argparse
import asyncio
import atexit
import json
import os
import platform
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil

from bench import measures
from bench.agents import building
from bench.masking import masking
from bench.measures import QUICK, Plan, Row
from bench.product import Processes, one_process
from bench.sandbox import commands_and_files
from bench.skills import skills

OnStack = Callable[[Processes, Path, Plan], Awaitable[list[Row]]]

ON_STACK: dict[str, OnStack] = {
    "first-event": measures.first_event,
    "long-turn": measures.long_turn,
    "cancel": measures.cancels,
    "history": measures.history,
    "watchers": measures.watchers,
    "throughput": measures.throughput,
    "skills": skills,
}
ALONE: dict[str, Callable[[Path, Plan], Awaitable[list[Row]]]] = {
    "start-up": lambda folder, _: measures.start_up(folder),
    "bytes": measures.bytes_sent,
    "store": measures.stores,
    "crash": lambda folder, _: measures.crash(folder),
    "agents": building,
    "sandbox": commands_and_files,
    "masking": masking,
}


async def measure(chosen: set[str], plan: Plan, report: Callable[[Row], None]) -> list[Row]:
    rows: list[Row] = []

    def add(found: list[Row]) -> None:
        for row in found:
            report(row)
        rows.extend(found)

    with tempfile.TemporaryDirectory(prefix="agent-runner-bench-") as scratch:
        folder = Path(scratch)
        for name, alone in ALONE.items():
            if name in chosen:
                own = folder / name
                own.mkdir()
                add(await alone(own, plan))
        if chosen & set(ON_STACK):
            with one_process(folder) as processes:
                for name, on_stack in ON_STACK.items():
                    if name in chosen:
                        add(await on_stack(processes, folder, plan))
    return rows


def print_row(row: Row) -> None:
    mark = {True: "ok", False: "MISSED", None: ""}[row.holds]
    print(f"{row.name:<52} {row.value:>14}  {row.budget:<16} {mark:<7} {row.floor}  {row.spread}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    names = [*ALONE, *ON_STACK]
    parser.add_argument("names", nargs="*", help=f"what to measure; all of: {', '.join(names)}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer runs, for a look")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    load = os.getloadavg()[0]
    if not arguments.json:
        print(
            f"{psutil.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}\n", flush=True
        )
    report = (lambda _: None) if arguments.json else print_row
    plan = QUICK if arguments.quick else Plan()
    rows = asyncio.run(measure(set(arguments.names) or set(names), plan, report))
    if arguments.json:
        machine = {"cores": psutil.cpu_count(), "load": load, "python": platform.python_version()}
        print(json.dumps({"machine": machine, "rows": [row.as_dict() for row in rows]}))
    # This process has opened a Temporal client, which can abort in the interpreter's exit. What was to be
    # cleaned up then still is, such as a container engine.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
