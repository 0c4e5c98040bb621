"""`version` and `completion`."""

from __future__ import annotations

import click

from agent_runner.cli import _errors
from agent_runner.cli._options import connection_options, shared_options
from agent_runner.cli._output import to_json, write

DISTRIBUTION = "agent-runner-platform"


def installed_version() -> str:
    """Version of the installed distribution; `unknown` when run from a bare checkout."""
    from importlib import metadata

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


@click.command("version")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--client", "client_only", is_flag=True, help="Do not ask the server.")
@connection_options
def version_command(output: str, client_only: bool) -> int:
    """Show the versions of this program and of the server."""
    versions: dict[str, str] = {"client": installed_version()}
    if not client_only:
        versions |= _server_versions()
    if output == "json":
        write(to_json(versions))
    else:
        for name, value in versions.items():
            write(f"{name:<10}{value}")
    return _errors.OK


def _server_versions() -> dict[str, str]:
    from agent_runner.cli._connection import online
    from agent_runner.errors import AgentRunnerError

    try:
        info = online(lambda client: client.server_info())
    except AgentRunnerError as error:
        return {"server": f"- ({error})"}
    return {"server": info.version, "temporal": info.temporal_address}


@click.command("completion", short_help="Print a completion script for a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@shared_options
def completion_command(shell: str) -> int:
    """Print a completion script: eval "$(agent-runner completion bash)"."""
    from click.shell_completion import get_completion_class

    from agent_runner.cli._main import cli

    found = get_completion_class(shell)
    assert found is not None
    write(found(cli, {}, "agent-runner", "_AGENT_RUNNER_COMPLETE").source())
    return _errors.OK
