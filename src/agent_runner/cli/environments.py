"""`env` and `admin`: where variables come from, and the keys secret ones are kept with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agent_runner.cli import _errors
from agent_runner.cli._connection import online
from agent_runner.cli._options import connection_options, shared_options
from agent_runner.cli._output import note, one_line, table, write

if TYPE_CHECKING:
    from agent_runner.client import AgentRunner
    from agent_runner.domain.environments import MergedEnvironment, Variable

_WIDEST_VALUE = 60


@click.group("env", short_help="Explain the variables agents get.")
@shared_options
def env_command() -> None:
    """Variables: which ones an agent's processes get, and where each comes from."""


@env_command.command("explain", short_help="Show each variable and the layer that set it.")
@click.option("--session", metavar="ID", help="A session, or latest.")
@click.option("--execution", metavar="ID", help="An execution, or latest: its own variables count too.")
@click.option("--agent", metavar="NAME", help="An agent with its default environments.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@connection_options
def explain_command(session: str | None, execution: str | None, agent: str | None, output: str) -> int:
    """Show each variable, the layer that set it, and the layers it won over.

    Layers, a later one winning: the agent, each environment of its instance, the execution. Secrets are
    masked. Exits with 1 when a variable the agent asks for has no value.
    """
    if sum(map(bool, (session, execution, agent))) != 1:
        raise click.UsageError("Say one of --session, --execution and --agent.")

    async def work(client: AgentRunner) -> int:
        merged = await _resolved(client, session or "", execution or "", agent or "")
        write(_as_json(merged) if output == "json" else _as_table(merged))
        if merged.missing and output == "table" and not execution:
            note(f"To be set by an environment or with each run: {', '.join(merged.missing)}.")
        elif merged.missing:
            note(f"Missing: {', '.join(merged.missing)}.")
        return _errors.FAILED if merged.missing else _errors.OK

    return online(work)


async def _resolved(client: AgentRunner, session: str, execution: str, agent: str) -> MergedEnvironment:
    from agent_runner.client.kinds import AGENT, ENVIRONMENT, EXECUTION, INSTANCE, SESSION
    from agent_runner.domain.environments import resolve

    runtime: Any = {}
    if agent:
        found: Any = await client.resources.get(AGENT, agent)
        instance: Any = await client.resources.get(INSTANCE, found.status.default_instance_id)
    else:
        if execution:
            run: Any = await client.resources.get(EXECUTION, execution)
            session, runtime = run.spec.session_id, run.spec.runtime_env
        chat: Any = await client.resources.get(SESSION, session)
        instance = await client.resources.get(INSTANCE, chat.spec.agent_instance_id)
        found = await client.resources.get(AGENT, instance.spec.agent_id)
    layers = []
    for reference in instance.spec.environment_refs:
        org = reference.org or instance.metadata.org
        environment: Any = await client.resources.get(ENVIRONMENT, reference.slug, org=org)
        layers.append((environment.metadata.slug, environment.spec.data))
    return resolve(found.spec.env_spec.data, layers, runtime)


def _as_table(merged: MergedEnvironment) -> str:
    rows = [
        (name, _shown(variable), variable.source or "-", ", ".join(variable.sources[:-1]) or "-")
        for name, variable in sorted(merged.variables.items())
    ]
    return table(("NAME", "VALUE", "FROM", "WON OVER"), rows) if rows else "There are no variables."


def _as_json(merged: MergedEnvironment) -> str:
    import json

    return json.dumps(
        {
            name: {
                "value": _value(variable),
                "secret": variable.is_secret,
                "required": variable.required,
                "from": variable.source,
                "layers": list(variable.sources),
            }
            for name, variable in sorted(merged.variables.items())
        },
        indent=2,
    )


def _shown(variable: Variable) -> str:
    value = _value(variable)
    if value is None:
        return "(removed)" if variable.sources else "(missing)"
    return one_line(value, _WIDEST_VALUE) if value else "(empty)"


def _value(variable: Variable) -> str | None:
    # The server has masked what its layer calls secret; a layer below may have called it so, too.
    from agent_runner.domain.masking import MASK

    return MASK if variable.is_secret and variable.value else variable.value


@click.group("admin", short_help="Look after a server.")
@shared_options
def admin_command() -> None:
    """What whoever runs a server has to do now and then."""


@admin_command.command("rotate-keys", short_help="Encrypt every stored secret with the first key.")
@connection_options
def rotate_keys_command() -> int:
    """Encrypt every stored secret anew with the first key of the server's keyring.

    Put a new key first in AGENT_RUNNER_ENCRYPTION_KEYS or in the file `encryption-keys`, restart the
    server, then run this. It may be broken off and run again. Exits with 1 when a secret could not be
    read.
    """

    async def work(client: AgentRunner) -> int:
        done = await client.rotate_keys()
        write(f"{done.rotated} secrets encrypted anew with key {done.current_key_id}.")
        for key_id, count in sorted(done.left.items()):
            use = "in use" if key_id == done.current_key_id else "STILL NEEDED"
            write(f"key {key_id}: {count} secrets ({use})")
        for problem in done.unreadable:
            note(problem)
        return _errors.FAILED if done.unreadable else _errors.OK

    return online(work)
