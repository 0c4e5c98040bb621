"""Measures the product beside floors of the same run: the bare engine loop, Temporal's no-op, a plain commit.

Each line has its value, its budget (where there is one) and whether that holds, the floor, and how the values
spread. Times on a shared machine vary two- to fourfold: compare lines of one run, and look at the spread.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import json
import logging
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import psutil
import structlog

from agent_runner.bootstrap.engines import missing
from agent_runner.errors import AgentRunnerError
from bench.measures import MEASURES, Measure, measure
from bench.plans import QUICK, Plan
from bench.product import TurnFailedError
from bench.rows import HEAD, Row

_EPILOG = """exit code: 0 when all was measured, also where a budget is missed; 1 when an execution failed or
something could not be measured; with --check 3 when a budget is missed.

examples:
  python -m bench                                   everything, some minutes
  python -m bench --quick first-event token-gap     a look at two
  python -m bench load --executions 200 --concurrency 50 --token-ms 0,5,20
"""


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(MEASURES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(MEASURES)}")
    chosen = _able(_chosen(arguments.names, quick=arguments.quick))
    plan = _plan(arguments)
    machine: dict[str, object] = {
        "cores": psutil.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
    }
    if not arguments.json:
        print("{cores} cores, load {load:.1f}, Python {python}\n\n".format_map(machine) + HEAD, flush=True)
    # The services log each execution, and some measures have them in this process.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    began = time.monotonic()
    try:
        rows = asyncio.run(_measured(chosen, plan, _silent if arguments.json else _print))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _leave(130)
    except (TurnFailedError, AgentRunnerError) as error:
        print(f"Error: {error}", file=sys.stderr)
        _leave(1)
    if arguments.json:
        print(json.dumps({"machine": machine, "rows": [row.as_dict() for row in rows]}))
    else:
        print(f"\n{summary(rows)}\n{time.monotonic() - began:.0f} s")
    _leave(exit_code(rows, check=arguments.check))


async def _measured(chosen: Sequence[Measure], plan: Plan, report: Callable[[Row], None]) -> list[Row]:
    running = asyncio.current_task()
    assert running is not None
    # So that nothing that was started is left behind.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    with tempfile.TemporaryDirectory(prefix="agent-runner-bench-") as scratch:
        return await measure(chosen, Path(scratch), plan, report)


def _print(row: Row) -> None:
    print(row.line(), flush=True)


def _silent(row: Row) -> None:
    """For JSON, which is printed at the end."""


def summary(rows: Sequence[Row]) -> str:
    """How many budgets hold, and each that does not."""
    missed = [row for row in rows if row.holds is False]
    held = sum(row.holds is True for row in rows)
    lines = [f"{held} budgets hold, {len(missed)} are missed{':' if missed else '.'}"]
    return "\n".join([*lines, *(f"  {row.line()}" for row in missed)])


def exit_code(rows: Sequence[Row], *, check: bool) -> int:
    """See the epilog of the help."""
    if any(row.failed for row in rows):
        return 1
    return 3 if check and any(row.holds is False for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {name:<20} {found.says}" for name, found in MEASURES.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"{__doc__}\nnames:\n{names}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="name", help="what to measure; everything without one")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the main lines of one process, or the names given, in fewer runs: a minute or so",
    )
    parser.add_argument("--check", action="store_true", help="exit with 3 when a budget is missed")
    usual = Plan()
    load = parser.add_argument_group("load")
    load.add_argument(
        "--executions",
        type=_count,
        metavar="N",
        help=f"of each round ({usual.executions}; quick {QUICK.executions})",
    )
    load.add_argument(
        "--concurrency", type=_count, metavar="C", help=f"how many at once ({usual.concurrency})"
    )
    load.add_argument(
        "--token-ms",
        type=_delays,
        metavar="MS,…",
        help=f"speeds of the scripted model, ms a token ({','.join(f'{ms:g}' for ms in usual.token_ms)})",
    )
    load.add_argument("--rounds", type=_count, metavar="R", help="of the bare loop and the product, by turns")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


def _delays(text: str) -> tuple[float, ...]:
    with suppress(ValueError):
        found = tuple(float(part) for part in text.split(","))
        if all(0 <= number < 60_000 for number in found):
            return found
    raise argparse.ArgumentTypeError(f"must be numbers of milliseconds with commas between, not {text!r}")


def _plan(arguments: argparse.Namespace) -> Plan:
    given = {name: getattr(arguments, name) for name in ("executions", "concurrency", "token_ms", "rounds")}
    plan = QUICK if arguments.quick else Plan()
    return replace(plan, **{name: value for name, value in given.items() if value is not None})


def _chosen(names: Sequence[str], *, quick: bool) -> list[Measure]:
    if quick and not names:
        return [replace(found, on=found.on[:1]) for found in MEASURES.values() if found.quick]
    if not names:
        return [found for found in MEASURES.values() if not found.by_name_only]
    return [MEASURES[name] for name in names]


def _able(wanted: list[Measure]) -> list[Measure]:
    """Those that can be measured on the engine that is installed here."""
    if not missing("deepagents"):
        return wanted
    able = [found for found in wanted if found.any_engine]
    if len(able) < len(wanted):
        print("All but `agents` needs the default engine: run it in .venv.", file=sys.stderr)
    if not able:
        raise SystemExit(1)
    return able


def _leave(code: int) -> NoReturn:
    # This process has opened a Temporal client, which can abort in the interpreter's exit. What was to be
    # cleaned up then still is, such as a container engine.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
