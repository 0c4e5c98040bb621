"""`delete`: resources removed, after asking."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from agent_runner.cli import _errors
from agent_runner.cli._completion import complete_kinds, complete_names
from agent_runner.cli._connection import online
from agent_runner.cli._options import connection_options
from agent_runner.cli._output import write
from agent_runner.cli.get import parse_target

if TYPE_CHECKING:
    from agent_runner.client import AgentRunner


@click.command("delete", short_help="Remove resources, after asking.")
@click.argument("kind", shell_complete=complete_kinds)
@click.argument("names", nargs=-1, metavar="NAME...", shell_complete=complete_names)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@connection_options
def delete_command(kind: str, names: Sequence[str], yes: bool) -> int:
    """Remove resources for good: `delete agent NAME`."""
    found, wanted = parse_target(kind, names)
    if not wanted:
        raise click.UsageError(f"Say which one: delete {found.word} NAME.")
    targets = ", ".join(f"{found.word}/{name}" for name in wanted)
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"Nobody can be asked whether to delete {targets}. Give --yes.")
        if not click.confirm(f"Delete {targets}?", err=True):
            return _errors.FAILED

    async def work(client: AgentRunner) -> int:
        from agent_runner.cli._columns import name_of

        for name in wanted:
            gone = await client.resources.delete(found, name)
            write(f"{found.word}/{name_of(found, gone)} deleted")
        return _errors.OK

    return online(work)
