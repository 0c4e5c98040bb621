"""`up`, `down`, `status`, `logs`: the whole stack on this machine."""

from __future__ import annotations

import os
import signal
import sys
from datetime import UTC

import click

from agent_runner.cli import _errors, _stack
from agent_runner.cli._connection import connection
from agent_runner.cli._options import connection_options, shared_options
from agent_runner.cli._output import duration, error_stream_is_styled, note, to_json, write


@click.command("up")
@click.option("-d", "--detach", is_flag=True, help="Return when it is ready; it runs on in the background.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Port of the control plane; 0 for a free one.",
)
@click.option("--listen", metavar="HOST:PORT", help="Where the control plane listens.")
@click.option("--insecure", is_flag=True, help="Allow listening beyond loopback without a key.")
@click.option("--model", metavar="NAME", help="Model for agents that name none.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when ready.")
@click.option("--temporary", is_flag=True, hidden=True)
@shared_options
def up_command(
    detach: bool,
    port: int | None,
    listen: str | None,
    insecure: bool,
    model: str | None,
    quiet: bool,
    temporary: bool,
) -> int:
    """Start everything: Temporal, control plane and runner.

    Runs until Ctrl-C, or in the background with --detach. Data stays in the data directory.
    """
    if port is not None and listen is not None:
        raise click.UsageError("Give --port or --listen, not both.")
    if port is not None:
        listen = f"127.0.0.1:{port}"
    if temporary:
        # A second stack may run elsewhere on the usual port; this one is found by its state file.
        listen = listen or "127.0.0.1:0"
    if detach:
        return _up_in_background(listen, insecure, model, quiet)
    return _up_here(listen, insecure, model, quiet, temporary)


def _up_here(listen: str | None, insecure: bool, model: str | None, quiet: bool, temporary: bool) -> int:
    from agent_runner import bootstrap, settings

    # Nobody knows of a stack that lasts for one run.
    web_listen = "off" if temporary else None
    loaded = settings.load(listen=listen, web_listen=web_listen, insecure=insecure or None, model=model)
    mark = None
    if temporary:
        mark = _stack.end_with_parent(loaded.data_dir, lambda: os.kill(os.getpid(), signal.SIGTERM))

    def on_ready() -> None:
        if mark is not None:
            mark()
        state = _stack.running(loaded.data_dir)
        if state is not None and not quiet:
            _tell_ready(state, "Ctrl-C stops it.")

    return int(bootstrap.run_stack(loaded, on_ready, colors=error_stream_is_styled()))


def _up_in_background(listen: str | None, insecure: bool, model: str | None, quiet: bool) -> int:
    data_dir = connection().data_dir
    already = _stack.running(data_dir)
    if already is not None:
        _stack.Stack(data_dir, already).keep()
        note(f"The stack runs already (process {already.pid}, {already.address}).")
        return _errors.OK
    flags = ["--quiet"]
    flags += ["--listen", listen] if listen else []
    flags += ["--insecure"] if insecure else []
    flags += ["--model", model] if model else []
    starting = _stack.spawn(data_dir, flags)
    try:
        state = starting.wait()
    except KeyboardInterrupt:
        starting.stop()
        raise
    except _errors.CommandError:
        other = _stack.wait_for_other(data_dir)
        if other is None:
            raise
        note(f"The stack runs already (process {other.pid}, {other.address}).")
        return _errors.OK
    if not quiet:
        _tell_ready(state, "agent-runner down stops it.")
    return _errors.OK


def _tell_ready(state: _stack.StackState, ending: str) -> None:
    note(f"Agent Runner is up at {state.address}. {ending}")
    if state.web:
        note(f"  web       {state.web}")
    if state.temporal:
        note(f"  temporal  {state.temporal}")
    note('Try: agent-runner run "Write a haiku into haiku.txt"')


@click.command("down")
@shared_options
def down_command() -> int:
    """Stop the stack that runs here. Data stays."""
    data_dir = connection().data_dir
    state = _stack.running(data_dir)
    if state is None:
        note("No stack runs here.")
        return _errors.OK
    killed = _stack.stop_process(state.pid, wait=_stack.gone(state.pid))
    _stack.forget(data_dir)
    if killed:
        note(f"The stack (process {state.pid}) did not stop within 10 s and was killed. Nothing is lost.")
    else:
        note("The stack is down.")
    return _errors.OK


@click.command("status")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@connection_options
def status_command(output: str) -> int:
    """Show whether the server runs and what it uses.

    Exit code 7 when it does not answer."""
    from dataclasses import asdict

    from agent_runner.cli._connection import resolve_address

    where = connection()
    state = _stack.running(where.data_dir)
    facts: dict[str, object] = {"address": resolve_address(where), "data_dir": str(where.data_dir)}
    own = state is not None and state.address == facts["address"]
    if state is not None and own:
        facts |= asdict(state)
    problem = _ask_server(facts)
    if problem is None and not own:
        del facts["data_dir"]  # another server's is not known
    if output == "json":
        write(to_json({**facts, "reachable": problem is None}))
    else:
        for name, value in _told(facts).items():
            if value != "":
                write(f"{name.replace('_', ' '):<20}{value}")
    if problem is not None:
        return _errors.report(problem)
    return _errors.OK


def _ask_server(facts: dict[str, object]) -> Exception | None:
    """Add what the server says of itself; returns why it says nothing."""
    from agent_runner.cli._connection import online
    from agent_runner.client.errors import UnsupportedError
    from agent_runner.errors import AgentRunnerError

    try:
        info = online(lambda client: client.server_info())
    except UnsupportedError:
        facts["version"] = "unknown: a server of the Stigmer API alone"
    except AgentRunnerError as error:
        return error
    else:
        facts["version"] = info.version
        facts["temporal"] = info.temporal_address
        facts["temporal_reachable"] = info.temporal_reachable
        if info.database:  # not said by older servers
            facts["database"], facts["database_problem"] = info.database, info.database_problem
        facts["up_for"] = _up_for(info.started_at)
    return None


def _told(facts: dict[str, object]) -> dict[str, object]:
    """The facts for people: what is used, and behind it whether that answers."""
    told = {name: value for name, value in facts.items() if not name.endswith(("_reachable", "_problem"))}
    if "temporal_reachable" in facts:
        told["temporal"] = f"{told['temporal']} ({'reachable' if facts['temporal_reachable'] else 'away'})"
    if "database" in facts:
        told["database"] = f"{told['database']} ({facts['database_problem'] or 'answers'})"
    return told


def _up_for(started_at: str) -> str:
    from datetime import datetime

    try:
        began = datetime.fromisoformat(started_at)
    except ValueError:
        return "-"
    return duration((datetime.now(UTC) - began).total_seconds())


@click.command("logs", short_help="Show the log of the stack in the background.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines.")
@click.option(
    "-n",
    "--tail",
    metavar="N",
    type=click.IntRange(min=-1),
    default=100,
    show_default=True,
    help="Lines; -1 for all.",
)
@shared_options
def logs_command(follow: bool, tail: int) -> int:
    """Show the log of the stack that runs, or ran, in the background."""
    path = _stack.log_path(connection().data_dir)
    if not path.is_file():
        raise _errors.CommandError(
            "There is no log yet: a stack in the foreground logs to its terminal.",
            code="NOT_FOUND",
            exit_code=_errors.NOT_FOUND,
            hint="agent-runner up --detach",
        )
    for line in _stack.follow(path, tail=tail, keep_on=follow):
        sys.stdout.write(line)
        sys.stdout.flush()
    return _errors.OK
