"""`tool-output`: what a tool gave, whole, also where the status shows only its ends."""

from __future__ import annotations

import codecs
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent_runner.cli import _errors
from agent_runner.cli._completion import complete_executions
from agent_runner.cli._connection import online
from agent_runner.cli._options import connection_options
from agent_runner.cli._output import clean, note, one_line, table, write
from agent_runner.cli.files import size_of, whole_or_none
from agent_runner.cli.watch import execution_id

if TYPE_CHECKING:
    from agent_runner.client import AgentRunner


@click.command("tool-output", short_help="Print what a tool gave, whole.")
@click.argument("execution", metavar="EXECUTION", shell_complete=complete_executions)
@click.argument("call", metavar="[CALL]", default="")
@click.option(
    "-o", "--output", metavar="FILE", default="-", show_default=True, help="Where to; - for stdout."
)
@connection_options
def tool_output_command(execution: str, call: str, output: str) -> int:
    """Print what a tool gave, whole: `tool-output latest CALL > log.txt`.

    EXECUTION is an id or latest, CALL the id of a tool call; without it the calls are listed. Of results
    over 256 KiB everything else shows the beginning and the end alone. Secrets are masked; on a terminal,
    control characters are left out. FILE arrives whole or not at all.
    """

    async def work(client: AgentRunner) -> int:
        id = await execution_id(client, execution)
        if not call:
            _list((await client.executions.get(id)).status.tool_calls)
            return _errors.OK
        chunks = client.executions.tool_result(id, call)
        if output == "-":
            await (_show if sys.stdout.isatty() else _print)(chunks)
            return _errors.OK
        path = Path(output)
        with whole_or_none(path) as file:
            async for chunk in chunks:
                file.write(chunk)
            size = file.tell()
        note(f"{path} has {size_of(size)}.")
        return _errors.OK

    return online(work)


def _list(calls: Any) -> None:
    if not calls:
        note("It has called no tool.")
        return
    rows = [(one_line(call.id), one_line(call.name), _size(call)) for call in calls]
    write(table(("CALL", "TOOL", "SIZE"), rows))


def _size(call: Any) -> str:
    return "long" if call.artifact_key else size_of(len((call.result or call.error).encode()))


async def _print(chunks: AsyncIterator[bytes]) -> None:
    async for chunk in chunks:
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


async def _show(chunks: AsyncIterator[bytes]) -> None:
    """Without what a terminal would obey; of a sequence that two pieces share, its text stays."""
    decode, text = codecs.getincrementaldecoder("utf-8")("replace").decode, ""
    async for chunk in chunks:
        text = clean(decode(chunk))
        sys.stdout.write(text)
    sys.stdout.write("" if text.endswith("\n") else "\n")
    sys.stdout.flush()
