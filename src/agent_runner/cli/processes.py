"""`server`, `worker`, `doctor`: the parts one by one, for production, and a look at the machine."""

from __future__ import annotations

import click

from agent_runner.cli import _errors
from agent_runner.cli._options import shared_options
from agent_runner.cli._output import error_stream_is_styled, styled, to_json, write

_MARKS = {True: ("ok", "green"), False: ("PROBLEM", "red"), None: ("-", "bright_black")}


@click.command("server")
@click.option("--listen", metavar="HOST:PORT", help="Where to listen; else AGENT_RUNNER_LISTEN.")
@click.option("--insecure", is_flag=True, help="Allow listening beyond loopback without a key.")
@shared_options
def server_command(listen: str | None, insecure: bool) -> int:
    """Run the control plane alone. Temporal is found by TEMPORAL_ADDRESS."""
    from agent_runner import bootstrap, settings

    loaded = settings.load(listen=listen, insecure=insecure or None)
    return int(bootstrap.run_server(loaded, colors=error_stream_is_styled()))


@click.command("worker", short_help="Run a runner alone.")
@click.option("--address", metavar="HOST:PORT", help="The control plane; else AGENT_RUNNER_ADDRESS.")
@click.option("--concurrency", type=click.IntRange(min=1), metavar="N", help="Executions at a time.")
@shared_options
def worker_command(address: str | None, concurrency: int | None) -> int:
    """Run a runner alone: it takes executions from Temporal's task queue."""
    from agent_runner import bootstrap, settings

    loaded = settings.load(address=address, concurrency=concurrency)
    return int(bootstrap.run_worker(loaded, colors=error_stream_is_styled()))


@click.command("doctor", short_help="Check what this machine can do.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@shared_options
def doctor_command(output: str) -> int:
    """Check what this machine can do: sandbox, Temporal, model, directories. Exit code 1 on a problem.

    What does not work here and was not asked for is marked with a dash (`null` in JSON), and is no problem.
    """
    from agent_runner import bootstrap, settings

    rows = list(bootstrap.doctor(settings.load()))
    if output == "json":
        write(to_json([{"name": name, "ok": ok, "detail": detail} for name, ok, detail in rows]))
    else:
        import sys

        width = max(len(name) for name, _, _ in rows) + 2
        for name, ok, detail in rows:
            mark, color = _MARKS[ok]
            mark = f"{mark:<9}"
            if styled(sys.stdout):
                mark = click.style(mark, fg=color)
            write(f"{name:<{width}}{mark}{detail}")
    return _errors.FAILED if any(ok is False for _, ok, _ in rows) else _errors.OK
