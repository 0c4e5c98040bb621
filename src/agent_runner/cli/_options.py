"""Options several commands share, and where they are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def remember(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Keep an option's value for the whole command line, wherever in it the option stood."""
    if value not in (None, False) and parameter.name:
        ctx.find_root().ensure_object(dict)[parameter.name] = value
    return value


def recall(name: str) -> Any:
    """A remembered option of the command line that runs now; None when it was not given."""
    ctx = click.get_current_context(silent=True)
    return None if ctx is None else (ctx.find_root().obj or {}).get(name)


def _color(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    remember(ctx, parameter, value)
    if value in ("always", "never"):
        ctx.find_root().color = ctx.color = value == "always"


def _kept(*names: str, **settings: Any) -> Callable[[F], F]:
    return click.option(*names, expose_value=False, callback=settings.pop("callback", remember), **settings)


def shared_options(command: F) -> F:
    """`--debug` and `--color`: every command has them."""
    command = _kept("--debug", is_flag=True, is_eager=True, help="Show the traceback of an error.")(command)
    return _kept(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        is_eager=True,
        callback=_color,
        help="Colours; NO_COLOR and FORCE_COLOR count too.",
    )(command)


def connection_options(command: F) -> F:
    """`--address` and `--org`: commands which talk to the server."""
    command = shared_options(command)
    command = _kept("--org", metavar="ORG", help="Organization; else AGENT_RUNNER_ORG, else local.")(command)
    return _kept(
        "--address",
        metavar="HOST:PORT",
        help="Server; else AGENT_RUNNER_ADDRESS, else the stack that runs here.",
    )(command)
