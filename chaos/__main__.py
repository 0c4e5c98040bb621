"""Breaks the product on purpose and counts what got lost: `make chaos`, or `python -m chaos --help`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
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


_EPILOG = """scenarios:
  faults   the storm: kills, freezes and cuts while executions run and are watched; 200, in ten minutes or so
  resume   kills the worker that runs a turn, and times the next attempt; 10 kills
  cancel   cancels while a model streams, is silent, or a shell has children; 200 each
  queue    messages sent at once into sessions; 10,000 into 100
  long     tool rounds in one turn, 1,000, and a result of 50 MB

exit code: 0 when every promise was kept, 1 when one was broken, 130 when it was broken off.

examples:
  python -m chaos                              everything of the storm
  python -m chaos faults --seed 7 --count 50   two minutes of it
  python -m chaos faults --only "kill server"
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("scenario", nargs="?", choices=SCENARIOS, default="faults", help="see below; the storm without one")
    add("--seed", type=int, default=1, help="what is drawn follows from it (%(default)s)")
    add("--count", type=_whole, default=0, help="of faults, kills, cancels, messages or rounds")
    add("--sessions", type=_whole, default=0, help="busy at a time")
    add("--workers", type=_whole, default=2, help="processes that run turns (%(default)s)")
    add("--gap", type=_seconds, default=2.0, help="seconds between faults, on average (%(default)g)")
    add("--longest", type=_seconds, default=9.0, help="seconds a fault may last (%(default)g)")
    add("--reconnects", type=_whole, default=1000, help="at least so many, of watchers (%(default)s)")
    add("--only", default="", metavar="FAULT", choices=faults.KINDS, help=", ".join(faults.KINDS))
    add("--no-worker-commands", action="store_true", help="cancel with a Temporal that pushes none, alone")
    add("--keep", type=Path, metavar="DIR", help="work in this directory and leave it there")
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < 3600:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number of seconds, not {text!r}")


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    try:
        problems = asyncio.run(_run(SCENARIOS[options.scenario], options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("broken off", file=sys.stderr, flush=True)
        os._exit(130)
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
