"""`watch`, `cancel`, `pause`, `resume`: an execution that runs already."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent_runner.cli import _errors
from agent_runner.cli._completion import complete_executions
from agent_runner.cli._connection import online
from agent_runner.cli._options import connection_options
from agent_runner.cli._output import note

if TYPE_CHECKING:
    from agent_runner.client import AgentRunner


@click.command("watch", short_help="Watch an execution, live or finished.")
@click.argument("execution", metavar="EXECUTION", shell_complete=complete_executions)
@click.option(
    "--after-seq", type=click.IntRange(min=0), metavar="SEQ", default=0, help="Begin after this event."
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "jsonl"]),
    default="text",
    show_default=True,
    help="Lines for people, the execution at its end, or each event.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop watching after this time (exit code 124).",
)
@connection_options
def watch_command(execution: str, after_seq: int, output: str, timeout: float | None) -> int:
    """Watch an execution, live or finished, from its first event on; `latest` is the newest.

    Exit code 0 when it completed, 1 when it failed or was cancelled. Ctrl-C stops the watching alone.
    """

    async def work(client: AgentRunner) -> int:
        from agent_runner.cli._follow import conclude, follow, progress_for

        id = await execution_id(client, execution)
        progress = progress_for(output, events_are_data=True)
        followed = await follow(client, id, progress, after_seq=after_seq, timeout=timeout)
        return conclude(followed, output, answer=False)

    return online(work)


@click.command("cancel")
@click.argument("execution", metavar="EXECUTION", shell_complete=complete_executions)
@click.option("--reason", metavar="TEXT", default="", help="Shown in the status.")
@click.option("--force", is_flag=True, help="Do not ask: end it now, whatever its runner does.")
@connection_options
def cancel_command(execution: str, reason: str, force: bool) -> int:
    """Ask an execution to stop. What it did until then is kept."""

    async def work(client: AgentRunner) -> int:
        from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_CANCELLED

        id = await execution_id(client, execution)
        if force:
            await client.terminate(id, reason)
            note(f"Ended {id}.")
            return _errors.OK
        asked = await client.cancel(id, reason)
        if asked.status.phase == EXECUTION_CANCELLED:  # it was not running
            note(f"Cancelled {id}.")
        else:
            note(f"Asked {id} to stop. Watch it with: agent-runner watch {id}")
        return _errors.OK

    return online(work)


@click.command("pause", short_help="Ask an execution to stop until it is resumed.")
@click.argument("execution", metavar="EXECUTION", shell_complete=complete_executions)
@click.option("--reason", metavar="TEXT", default="", help="Shown to those who watch.")
@connection_options
def pause_command(execution: str, reason: str) -> int:
    """Ask an execution to stop at its next checkpoint, and to hold no worker until it is resumed."""

    async def work(client: AgentRunner) -> int:
        id = await execution_id(client, execution)
        paused = await client.pause(id, reason)
        word = "is paused" if paused.status.run.paused else "pauses after its step"
        note(f"{id} {word}. It goes on with: agent-runner resume {id}")
        return _errors.OK

    return online(work)


@click.command("resume")
@click.argument("execution", metavar="EXECUTION", shell_complete=complete_executions)
@connection_options
def resume_command(execution: str) -> int:
    """Let a paused execution go on from its checkpoint."""

    async def work(client: AgentRunner) -> int:
        id = await execution_id(client, execution)
        await client.resume(id)
        note(f"{id} goes on. Watch it with: agent-runner watch {id}")
        return _errors.OK

    return online(work)


async def execution_id(client: AgentRunner, name: str) -> str:
    """Id of an execution named by id, `KIND/ID` or `latest`.

    Raises:
        NotFoundError: there is none.
    """
    from agent_runner.client.kinds import EXECUTION

    found = await client.resources.get(EXECUTION, name.rpartition("/")[2])
    return str(found.metadata.id)  # type: ignore[attr-defined]
