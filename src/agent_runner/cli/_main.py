"""The group of all commands, and the one place where errors become text and exit codes."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import click

from agent_runner.cli import _errors
from agent_runner.cli._options import connection_options

COMMANDS: dict[str, str] = {
    "up": "stack",
    "down": "stack",
    "status": "stack",
    "logs": "stack",
    "run": "run",
    "watch": "watch",
    "tool-output": "results",
    "cancel": "watch",
    "pause": "watch",
    "resume": "watch",
    "session": "files",
    "cp": "files",
    "skill": "skills",
    "apply": "apply",
    "get": "get",
    "describe": "get",
    "delete": "delete",
    "env": "environments",
    "model": "models",
    "admin": "environments",
    "server": "processes",
    "worker": "processes",
    "doctor": "processes",
    "version": "version",
    "completion": "version",
}
"""Command to the module of this package it is in, in the order of the help."""


class LazyGroup(click.Group):
    """Imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        found: click.Command = getattr(
            importlib.import_module(f"agent_runner.cli.{module}"),
            f"{cmd_name.replace('-', '_')}_command",
        )
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            raise click.UsageError(f"No such command {name!r}.{_errors.did_you_mean(name, COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


def _show_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from agent_runner.cli.version import installed_version

        click.echo(f"agent-runner {installed_version()}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Begin with: agent-runner run "Write a haiku into haiku.txt"',
)
@click.option(
    "-V",
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version and exit.",
)
@connection_options
def cli() -> None:
    """Runs LLM agents durably, in a sandbox per session, and lets everybody watch."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and end the process with its exit code."""
    _open_closed_streams()
    _write_utf8()
    code = run(arguments)
    code = _flush(code)
    if "temporalio" in sys.modules:
        # Its threads abort the interpreter at exit, long after the work is done.
        os._exit(code)
    sys.exit(code)


def _open_closed_streams() -> None:
    """Python has no stream where the shell has closed one (`>&-`); nobody reads what goes there."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("r" if name == "stdin" else "w"))  # noqa: SIM115 (for good)


def _write_utf8() -> None:
    """Answers and data are UTF-8 in every locale; what is no text at all is shown as `\\udcff`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def run(arguments: list[str] | None) -> int:
    """Run a command and return its exit code; errors are told on stderr."""
    # Read when gRPC is imported. It writes to stderr what we tell ourselves, such as a port that is taken.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Leaves through the same clean-up as any other end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_errors.TERMINATED))
    if "_AGENT_RUNNER_COMPLETE" in os.environ:
        cli.main(prog_name="agent-runner")
    given = sys.argv[1:] if arguments is None else arguments
    as_json = _wants_json(given)
    try:
        with cli.make_context("agent-runner", list(given), **_colors()) as ctx:
            try:
                result = cli.invoke(ctx)
            except BaseException as error:  # noqa: BLE001 (the edge of the process; exit codes are in _errors)
                return _errors.report(error, as_json=as_json)
    except BaseException as error:  # noqa: BLE001 (the same, for the options before the command)
        return _errors.report(error, as_json=as_json)
    return result if isinstance(result, int) else 0


def _colors() -> dict[str, Any]:
    return {"color": False} if os.environ.get("NO_COLOR") else {}


def _wants_json(arguments: list[str]) -> bool:
    """Whether data was asked for as JSON; then an error is, too. It must be known where parsing fails."""
    forms = ("json", "jsonl")
    if any(argument in (f"--output={form}", f"-o{form}") for argument in arguments for form in forms):
        return True
    return any(name in ("-o", "--output") and value in forms for name, value in pairwise(arguments))


def _flush(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _errors.forget_stdout()
    except OSError as error:
        code = _errors.report(error)
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    return code
