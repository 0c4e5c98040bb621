"""`run`: one message to an agent, followed to its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent_runner.cli import _errors, _stack
from agent_runner.cli._completion import complete_agents, complete_instances, complete_sessions
from agent_runner.cli._connection import Connection, connection, online
from agent_runner.cli._options import connection_options
from agent_runner.cli._output import note, to_json, write

if TYPE_CHECKING:
    from agent_runner.client import AgentRunner
    from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for on the command line."""

    message: str = field(repr=False)
    agent: str
    instance: str
    session: str
    model: str
    env: dict[str, str] = field(repr=False)
    secrets: dict[str, str] = field(repr=False)
    if_busy: str
    output: str
    follow: bool
    timeout: float | None
    cancel_on_interrupt: bool


class _MessageCommand(click.Command):
    """Says what is meant when the quotes were forgotten."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if "unexpected extra argument" not in error.message:
                raise
            example = f'{ctx.command_path} "Write a haiku"'
            raise click.UsageError(f"A message of several words wants quotes: {example}", ctx) from error


@click.command("run", cls=_MessageCommand, short_help="Send a message to an agent and watch it work.")
@click.argument("message", metavar="MESSAGE|-")
@click.option(
    "-a",
    "--agent",
    metavar="NAME|ID",
    shell_complete=complete_agents,
    help="The agent; without one, an agent `assistant` is made.",
)
@click.option(
    "-i",
    "--instance",
    metavar="NAME|ID",
    shell_complete=complete_instances,
    help="An instance of an agent, with the environments it refers to.",
)
@click.option(
    "-s",
    "--session",
    metavar="ID",
    shell_complete=complete_sessions,
    help="Go on with a session; `latest` for the newest.",
)
@click.option("-m", "--model", metavar="NAME", help="Such as anthropic:claude-sonnet-4-6 or script:demo.")
@click.option(
    "-e",
    "--env",
    "variables",
    multiple=True,
    metavar="K=V",
    help="Variable for this run; `secret:K=V` is masked; without `=V` it is taken from here.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "jsonl"]),
    default="text",
    show_default=True,
    help="On stdout: the answer, the execution, or each event.",
)
@click.option("--no-follow", is_flag=True, help="Return at once, printing the execution's id.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop following after this time (exit code 124); the run goes on.",
)
@click.option(
    "--if-busy",
    type=click.Choice(["queue", "reject", "interrupt", "steer"]),
    help="When the session works on another message: wait (the default), refuse, cancel it, or tell it.",
)
@click.option("--cancel-on-interrupt", is_flag=True, help="Ctrl-C cancels at once, for scripts.")
@connection_options
def run_command(
    message: str,
    agent: str | None,
    instance: str | None,
    session: str | None,
    model: str | None,
    variables: Sequence[str],
    output: str,
    no_follow: bool,
    timeout: float | None,
    cancel_on_interrupt: bool,
    if_busy: str | None,
) -> int:
    """Send MESSAGE to an agent and watch it work; `-` reads the message from stdin.

    Uses the server that runs, or starts a stack for the length of the run. Ctrl-C detaches, a second one
    within 2 seconds cancels. Exit code 0 when the run completed, 1 when it failed or was cancelled.
    """
    _check_names({"--agent": agent, "--instance": instance, "--session": session, "--model": model})
    env, secrets = parse_variables(variables)
    request = Request(
        message=_read_message(message),
        agent=agent or "",
        instance=instance or "",
        session=session or "",
        model=absolute_script(model or "", Path.cwd()),
        env=env,
        secrets=secrets,
        if_busy=if_busy or "",
        output=output,
        follow=not no_follow,
        timeout=timeout,
        cancel_on_interrupt=cancel_on_interrupt,
    )
    where = connection()
    if where.address:
        return online(lambda client: _run(client, request), where)
    return _run_here(where, request)


def _check_names(names: dict[str, str | None]) -> None:
    for name, value in names.items():
        if value is not None and not value.strip():
            raise click.UsageError(f"{name} is empty.")
    given = [name for name in ("--agent", "--instance", "--session") if names[name]]
    if len(given) > 1:
        raise click.UsageError(
            f"{' and '.join(given)} were given, not both are possible: an agent or an instance begins a "
            "session, a session is gone on with."
        )


def _run_here(where: Connection, request: Request) -> int:
    with _stack.ensure_running(where.data_dir, note) as stack:

        async def work(client: AgentRunner) -> int:
            code = await _run(client, request)
            if stack.ends_with_us and await client.executions.any_unfinished():
                # This one, detached from, or that of a command which has detached before.
                stack.keep()
                note("The stack stays up for what still runs. Stop it with: agent-runner down")
            return code

        return online(work, replace(where, address=stack.state.address))


async def _run(client: AgentRunner, request: Request) -> int:
    from agent_runner.cli._follow import conclude, follow, progress_for

    execution = await _start(client, request)
    id, session = execution.metadata.id, execution.spec.session_id
    note(f"execution {id}  session {session}")
    if waiting := execution.status.run.queue_position:
        note(_waits(waiting, request.if_busy))
    if not request.follow:
        write(to_json({"executionId": id, "sessionId": session}) if request.output != "text" else id)
        note(f"Watch it with: agent-runner watch {id}")
        return _errors.OK
    followed = await follow(
        client,
        id,
        progress_for(request.output, events_are_data=False),
        timeout=request.timeout,
        cancels=True,
        cancel_on_interrupt=request.cancel_on_interrupt,
    )
    code = conclude(followed, request.output, answer=True)
    if code == _errors.OK and sys.stderr.isatty():
        note(f'Go on with: agent-runner run --session {session} "…"')
    return code


def _waits(before: int, if_busy: str) -> str:
    if if_busy == "steer":
        return (
            "It joins what runs in the session before its next step; if that ends first, it runs by itself."
        )
    return f"It waits for {before} of the session before it."


async def _start(client: AgentRunner, request: Request) -> AgentExecution:
    from agent_runner.cli._assistant import ensure_assistant
    from agent_runner.client.kinds import AGENT, SESSION

    agent_id = session_id = ""
    if request.session:
        session = await client.resources.get(SESSION, request.session)
        session_id = session.metadata.id  # type: ignore[attr-defined]
    elif request.instance:
        session_id = await _new_session(client, request.instance)
    elif request.agent:
        agent_id = (await client.resources.get(AGENT, request.agent)).metadata.id  # type: ignore[attr-defined]
    else:
        agent_id = (await ensure_assistant(client)).metadata.id
    return await client.executions.start(
        request.message,
        agent_id=agent_id,
        session_id=session_id,
        model=request.model,
        env=request.env,
        secrets=request.secrets,
        if_busy=request.if_busy,
    )


async def _new_session(client: AgentRunner, instance: str) -> str:
    """Begin a session of an instance, named by slug or id; returns the session's id."""
    import time

    from agent_runner.client.kinds import API_VERSION, INSTANCE
    from ai.stigmer.agentic.session.v1.api_pb2 import Session
    from ai.stigmer.commons.apiresource.enum_pb2 import organization

    found = await client.resources.get(INSTANCE, instance)
    session = Session(api_version=API_VERSION, kind="Session")
    session.metadata.name = f"session-{time.time_ns() // 1000}"
    session.metadata.org = client.org
    session.metadata.owner_scope = organization
    session.spec.agent_instance_id = found.metadata.id  # type: ignore[attr-defined]
    return str((await client.resources.create(session)).metadata.id)


def _read_message(message: str) -> str:
    if message == "-":
        if sys.stdin.isatty():
            note("Type the message, then Ctrl-D.")
        message = sys.stdin.buffer.read().decode("utf-8", "replace")
    if not message.strip():
        raise click.UsageError("The message is empty.")
    return _as_utf8(message)


def _as_utf8(argument: str) -> str:
    """What Python could not read in the encoding of the locale, read as stdin is."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return os.fsencode(argument).decode("utf-8", "replace")
    return argument


def parse_variables(variables: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """`K=V`, `secret:K=V`, or either without `=V` for the value it has here; returns (plain, secret).

    Raises:
        click.UsageError: no name, or no value to be found.
    """
    plain: dict[str, str] = {}
    secret: dict[str, str] = {}
    for variable in variables:
        target = secret if variable.startswith("secret:") else plain
        name, separator, value = variable.removeprefix("secret:").partition("=")
        if not name or not name.replace("_", "a").isalnum() or name[0].isdigit() or not name.isascii():
            raise click.UsageError(f"--env: {name or variable!r} is not the name of a variable.")
        if not separator:
            value = os.environ.get(name, "")
        if not value:
            where = "given an empty value" if separator else "not set here"
            raise click.UsageError(f"--env: {name} is {where}; a variable must have a value.")
        plain.pop(name, None)
        secret.pop(name, None)
        target[name] = value
    return plain, secret


def absolute_script(model: str, base: Path) -> str:
    """`script:FILE` with the file's whole path, for the runner works in another directory."""
    prefix, separator, path = model.partition(":")
    if prefix != "script" or not separator or not path.endswith((".yaml", ".yml")):
        return model
    return f"{prefix}:{(base / Path(path).expanduser()).resolve()}"
