"""Names completed from the server: quick, and silent whatever goes wrong."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from agent_runner.client import AgentRunner
    from agent_runner.client.kinds import Kind

WITHIN = 0.3
"""Seconds the server has to answer; a person waits for the key press."""


def complete_agents(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    return _names("agent", begun)


def complete_instances(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    return _names("instance", begun)


def complete_sessions(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    return _names("session", begun)


def complete_executions(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    return _names("execution", begun)


def complete_kinds(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from agent_runner.client.kinds import KINDS

    return [CompletionItem(kind.plural) for kind in KINDS if kind.plural.startswith(begun)]


def complete_names(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Names of the kind that stands before."""
    kind = ctx.params.get("kind")
    return _names(kind, begun) if isinstance(kind, str) else []


def _names(kind_name: str, begun: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    with contextlib.suppress(Exception):  # a completion that fails must print nothing
        return [CompletionItem(name) for name in _ask(kind_name, begun)]
    return []


def _ask(kind_name: str, begun: str) -> list[str]:
    import asyncio

    from agent_runner.cli._connection import online
    from agent_runner.client.kinds import kind_named

    kind = kind_named(kind_name)

    async def within(client: AgentRunner) -> list[str]:
        async with asyncio.timeout(WITHIN):
            return await _list(client, kind, begun)

    return online(within)


async def _list(client: AgentRunner, kind: Kind, begun: str) -> list[str]:
    by_slug = kind.query("getByReference") is not None
    names = []
    async for resource in client.resources.list(kind, limit=200):
        metadata = resource.metadata  # type: ignore[attr-defined]
        name = (metadata.slug if by_slug else "") or metadata.id
        if name.startswith(begun):
            names.append(name)
    return names
