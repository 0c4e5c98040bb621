"""`session …` and `cp`: files of a session's workspace, looked at and copied."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from agent_runner.cli import _errors
from agent_runner.cli._completion import complete_sessions
from agent_runner.cli._connection import online
from agent_runner.cli._options import connection_options, shared_options
from agent_runner.cli._output import age, note, table, to_dict, to_json, write

if TYPE_CHECKING:
    from agent_runner.client import AgentRunner
    from agent_runner.v1.workspace_service_pb2 import WorkspaceFile

_STEP = 1_000_000
"""Bytes between two updates of the progress."""


@click.group("session", short_help="Look into a session's workspace.")
@shared_options
def session_command() -> None:
    """Sessions: what lies in their workspaces."""


@session_command.command("files", short_help="List a directory of a session's workspace.")
@click.argument("session", shell_complete=complete_sessions)
@click.argument("path", default="/workspace")
@click.option(
    "-o", "--output", type=click.Choice(["table", "json", "jsonl"]), default="table", show_default=True
)
@click.option(
    "--limit", type=click.IntRange(min=0), default=1000, show_default=True, help="The first N; 0 for all."
)
@connection_options
def files_command(session: str, path: str, output: str, limit: int) -> int:
    """List a directory of a session's workspace: `session files latest src`.

    SESSION is an id or latest. PATH is absolute in the sandbox, or relative to /workspace. It works while
    nothing runs, too. Copy a file with: agent-runner cp SESSION:PATH .
    """

    async def work(client: AgentRunner) -> int:
        session_id = await _session_id(client, session)
        asked = limit + 1 if limit else 0
        found = [file async for file in client.workspaces.files(session_id, path, limit=asked)]
        if limit and len(found) > limit:
            note(f"The first {limit} are shown; --limit 0 shows all.")
            found.pop()
        _show(found, output, path)
        return _errors.OK

    return online(work)


def _show(files: list[WorkspaceFile], output: str, path: str) -> None:
    if output == "json":
        write(to_json({"items": [to_dict(file) for file in files]}))
    elif output == "jsonl":
        for file in files:
            write(to_json(to_dict(file), indent=None))
    elif not files:
        note(f"There is nothing in {path}.")
    else:
        write(table(("SIZE", "AGE", "PATH"), [_row(file) for file in files]))


def _row(file: WorkspaceFile) -> tuple[str, str, str]:
    from datetime import UTC, datetime

    changed = datetime.fromtimestamp(file.modified_at.seconds, tz=UTC)
    # A newline in a name must not look like another file.
    name = file.path.replace("\\", "\\\\").replace("\n", "\\n")
    return "-" if file.directory else size_of(file.size_bytes), age(changed), name + "/" * file.directory


def size_of(size: int) -> str:
    """`812 B`, `1.2 MB`: decimal units."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"


@dataclass(frozen=True, slots=True)
class _Place:
    """One side of a copy; `session` is empty for this machine's side."""

    session: str
    path: str


@click.command("cp", short_help="Copy a file into or out of a session's workspace.")
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.option("--no-progress", is_flag=True, help="Do not show how much was copied.")
@connection_options
def cp_command(source: str, target: str, no_progress: bool) -> int:
    """Copy one file: `cp SESSION:/workspace/report.pdf .` or `cp data.csv SESSION:/workspace/`.

    One of SOURCE and TARGET is SESSION:PATH, where SESSION is an id or latest, and PATH is absolute in the
    sandbox or relative to /workspace. The other is a file of this machine, or - for stdin or stdout. A
    TARGET that is a directory, or ends with /, keeps the file's name. A local file whose name has a colon
    is written ./NAME. Files arrive whole or not at all.
    """
    begin, end = _place(source), _place(target)
    if bool(begin.session) == bool(end.session):
        raise click.UsageError(
            "One of SOURCE and TARGET must be SESSION:PATH, and the other a local file or -."
        )

    async def work(client: AgentRunner) -> int:
        if begin.session:
            await _download(client, begin, end.path, no_progress)
        else:
            await _upload(client, begin.path, end, no_progress)
        return _errors.OK

    return online(work)


def _place(text: str) -> _Place:
    head, colon, path = text.partition(":")
    if not colon or not head or "/" in head:
        return _Place("", text)
    return _Place(head, path or "/workspace/")


async def _session_id(client: AgentRunner, session: str) -> str:
    from agent_runner.client.kinds import SESSION, canonical_id

    if SESSION.is_id(session):
        return canonical_id(session)
    found: Any = await client.resources.get(SESSION, session)
    return str(found.metadata.id)


async def _download(client: AgentRunner, source: _Place, target: str, quiet: bool) -> None:
    chunks = client.workspaces.download(await _session_id(client, source.session), source.path)
    if target == "-":
        with _progress(0, quiet) as copied:
            async for chunk in chunks:
                sys.stdout.buffer.write(chunk)
                copied(len(chunk))
        sys.stdout.buffer.flush()
        return
    path = _local_target(target, source.path)
    with _progress(0, quiet) as copied, whole_or_none(path) as file:
        async for chunk in chunks:
            file.write(chunk)
            copied(len(chunk))
        size = file.tell()
    note(f"{path} has {size_of(size)}.")


def _local_target(target: str, source: str) -> Path:
    path = Path(target)
    if not path.is_dir() and not target.endswith("/"):
        return path
    name = source.rstrip("/").rpartition("/")[2]
    if name in ("", ".", ".."):
        raise click.UsageError(f"{source!r} names no file.")
    return path / name


@contextmanager
def whole_or_none(path: Path) -> Iterator[BinaryIO]:
    """A file which takes the path's place when the block ends well; a device or pipe is just written to."""
    import tempfile

    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    path = path.resolve()  # a link stays, and the file it names is replaced
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:32]}.", dir=path.parent)
    aside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        aside.chmod(mode)
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


async def _upload(client: AgentRunner, source: str, target: _Place, quiet: bool) -> None:
    path = target.path
    if path.endswith("/"):
        if source == "-":
            raise click.UsageError("Say what the file is called: SESSION:/workspace/NAME.")
        path += Path(source).name
    session_id = await _session_id(client, target.session)
    with _opened(source) as (file, length), _progress(length, quiet) as copied:
        size = await client.workspaces.upload(session_id, path, _pieces(file, copied))
    note(f"{target.session}:{path} has {size_of(size)}.")


@contextmanager
def _opened(source: str) -> Iterator[tuple[BinaryIO, int]]:
    """A file and its length, which is 0 where it is not known."""
    if source == "-":
        yield sys.stdin.buffer, 0
        return
    with Path(source).open("rb") as file:
        yield file, os.fstat(file.fileno()).st_size


async def _pieces(file: BinaryIO, copied: Callable[[int], None]) -> AsyncIterator[bytes]:
    import asyncio

    from agent_runner.client.workspaces import PIECE

    while piece := await asyncio.to_thread(file.read, PIECE):
        yield piece
        copied(len(piece))


@contextmanager
def _progress(length: int, hidden: bool) -> Iterator[Callable[[int], None]]:
    """How much was copied, on a terminal; of `length` bytes where that is known."""
    plain = not sys.stderr.isatty() or bool(os.environ.get("CI")) or os.environ.get("TERM") == "dumb"
    if hidden or plain:
        yield lambda _: None
        return
    done, shown = 0, 0

    def copied(count: int) -> None:
        nonlocal done, shown
        done += count
        if done - shown >= _STEP:
            shown = done
            of = f" of {size_of(length)} ({done * 100 // length} %)" if length >= done else ""
            click.echo(f"\r\x1b[K{size_of(done)}{of}", nl=False, err=True)

    try:
        yield copied
    finally:
        if shown:
            click.echo("\r\x1b[K", nl=False, err=True)
