"""`get` and `describe`: resources read and shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from agent_runner.cli import _errors
from agent_runner.cli._completion import complete_kinds, complete_names
from agent_runner.cli._connection import online
from agent_runner.cli._options import connection_options
from agent_runner.cli._output import FORMATS, note, print_resources, write

if TYPE_CHECKING:
    from agent_runner.client import AgentRunner
    from agent_runner.client.kinds import Kind


@click.command("get", short_help="List resources, or show those named.")
@click.argument("kind", shell_complete=complete_kinds)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_names)
@click.option("-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option(
    "-l", "--label", "labels", multiple=True, metavar="K=V", help="Only those with the label; all of several."
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="The newest N; 0 for all.",
)
@click.option("-A", "--all-orgs", is_flag=True, help="Of every organization.")
@connection_options
def get_command(
    kind: str, names: Sequence[str], output: str, labels: Sequence[str], limit: int, all_orgs: bool
) -> int:
    """List resources, or show the named ones: `get agents`, `get agent NAME`, `get execution/latest`.

    Kinds: agents (ag), instances (ain), sessions (ses), executions (ex), environments (env), skills (sk),
    mcpservers (mcp), contexts (ctx).
    """
    found, wanted = parse_target(kind, names)
    if wanted and labels:
        raise click.UsageError("Give names or --label, not both.")
    selector = parse_labels(labels)

    async def work(client: AgentRunner) -> int:
        if wanted:
            resources = [await client.resources.get(found, name) for name in wanted]
        else:
            resources = await _list(client, found, selector, limit, all_orgs)
        if not resources and output in ("table", "wide"):
            note(_nothing(client, found, selector, all_orgs))
        else:
            _show(found, resources, output, single=len(wanted) == 1, all_orgs=all_orgs)
        return _errors.OK

    return online(work)


async def _list(
    client: AgentRunner, kind: Kind, labels: dict[str, str], limit: int, all_orgs: bool
) -> list[Any]:
    org = "" if all_orgs else None
    asked = limit + 1 if limit else 0
    resources = [r async for r in client.resources.list(kind, org=org, labels=labels, limit=asked)]
    if limit and len(resources) > limit:
        note(f"There are more than {limit}; --limit 0 shows all.")
        resources.pop()
    return resources


def _nothing(client: AgentRunner, kind: Kind, selector: dict[str, str], all_orgs: bool) -> str:
    if selector:
        return f"No {kind.plural} have these labels."
    return (
        f"There are no {kind.plural} yet."
        if all_orgs
        else f"There are no {kind.plural} in {client.org!r} yet."
    )


def _show(kind: Kind, resources: list[Any], output: str, *, single: bool, all_orgs: bool) -> None:
    from agent_runner.cli._columns import name_of, render

    print_resources(
        resources,
        output,
        rows=lambda wide: render(kind, resources, wide=wide, all_orgs=all_orgs),
        names=lambda resource: f"{kind.word}/{name_of(kind, resource)}",
        single=single,
    )


@click.command("describe", short_help="Show everything about a resource.")
@click.argument("kind", shell_complete=complete_kinds)
@click.argument("names", nargs=-1, metavar="NAME...", shell_complete=complete_names)
@connection_options
def describe_command(kind: str, names: Sequence[str]) -> int:
    """Show everything about a resource, for people: `describe execution latest`."""
    found, wanted = parse_target(kind, names)
    if not wanted:
        raise click.UsageError(f"Say which one: describe {found.word} NAME.")

    async def work(client: AgentRunner) -> int:
        from agent_runner.cli._describe import describe

        for index, name in enumerate(wanted):
            resource = await client.resources.get(found, name)
            write(("\n" if index else "") + describe(found, resource))
        return _errors.OK

    return online(work)


def parse_target(kind: str, names: Sequence[str]) -> tuple[Kind, tuple[str, ...]]:
    """`KIND NAME…` or `KIND/NAME`.

    Raises:
        InvalidRequestError: no such kind.
    """
    from agent_runner.client.kinds import kind_named

    word, separator, name = kind.partition("/")
    if separator and not name:
        raise click.UsageError(f"A name is missing after {kind!r}.")
    return kind_named(word), ((name,) if name else ()) + tuple(names)


def parse_labels(labels: Sequence[str]) -> dict[str, str]:
    """`K=V`, also several with commas between."""
    selector: dict[str, str] = {}
    for label in ",".join(labels).split(",") if labels else ():
        name, separator, value = label.partition("=")
        if not separator or not name:
            raise click.UsageError(f"--label: {label!r} is not K=V.")
        selector[name] = value
    return selector
