"""`skill …`: skills pushed, looked at, pulled and rolled back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from agent_runner.cli import _errors
from agent_runner.cli._connection import online
from agent_runner.cli._options import connection_options, shared_options
from agent_runner.cli._output import clean, note, one_line, table, to_dict, to_json, write

if TYPE_CHECKING:
    from agent_runner.cli._skill_packs import Folder
    from agent_runner.client import AgentRunner
    from agent_runner.v1.skill_service_pb2 import PushSkillResponse
    from ai.stigmer.agentic.skill.v1.api_pb2 import Skill

FORMATS = click.Choice(["text", "json"])
_ANY = 4 << 30
_SHOWN = 20
"""Lines of what was left out before the rest is only counted."""


@click.group("skill", short_help="Push, show, pull and roll back skills.")
@shared_options
def skill_command() -> None:
    """Skills: know-how for agents, a folder with SKILL.md and what belongs to it.

    A skill is named as SLUG, or SLUG:VERSION where VERSION is a tag, a hash, or `latest`.
    """


@skill_command.command("push")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".")
@click.option("--name", metavar="NAME", help="Else that in the front matter, else the folder's.")
@click.option("--tag", metavar="TAG", default="", help="Tag to move to this version.")
@click.option("--dry-run", is_flag=True, help="Check, and say what would be pushed; store nothing.")
@click.option("--no-progress", is_flag=True, help="No progress bar.")
@click.option("-o", "--output", type=FORMATS, default="text", show_default=True)
@connection_options
def push_command(
    directory: Path, name: str | None, tag: str, dry_run: bool, no_progress: bool, output: str
) -> int:
    """Push a folder as a skill's new version.

    The same content gives the same version. Left out: version control, caches, editors' files, secrets
    (.env), and what .skillignore says, in the form of .gitignore.
    """
    import tempfile

    folder, named = _checked(directory, name)
    with tempfile.TemporaryFile() as file:
        with _bar("Packing", folder.size, no_progress) as packed:
            _pack(folder, file, packed)
        size = file.seek(0, 2)

        async def work(client: AgentRunner) -> PushSkillResponse:
            return await _push(client, file, named, tag, dry_run, lambda: _bar("Pushing", size, no_progress))

        answer = online(work)
    _tell_push(answer, folder, dry_run, output)
    return _errors.OK


def _checked(directory: Path, name: str | None) -> tuple[Folder, str]:
    """The folder's content and the skill's name; what is wrong is found before anything is sent."""
    from agent_runner.cli import _skill_packs
    from agent_runner.domain import skills

    folder = _skill_packs.read_folder(directory)
    if not any(file.name == skills.SKILL_MD for file in folder.files):
        raise _errors.CommandError(
            f"{directory} has no SKILL.md at its top.",
            code="INVALID_ARGUMENT",
            exit_code=_errors.USAGE,
            hint="docs/guides/writing-skills.md",
        )
    text = _read_skill_md(directory)
    named = text.front_matter.name if text.front_matter is not None else directory.resolve().name
    return folder, name or named


def _read_skill_md(directory: Path) -> Any:
    from agent_runner.domain import skills
    from agent_runner.errors import ArtifactError

    try:
        return skills.read_skill_md(skills.decode_skill_md((directory / skills.SKILL_MD).read_bytes()))
    except ArtifactError as error:
        raise _errors.CommandError(str(error), code="INVALID_ARGUMENT", exit_code=_errors.USAGE) from error


def _pack(folder: Folder, file: Any, packed: Callable[[int], None]) -> None:
    from agent_runner.cli import _skill_packs
    from agent_runner.domain import archives
    from agent_runner.errors import ArtifactError

    _skill_packs.write_zip(folder.files, file, packed)
    # Sizes are for the server to judge: they are settings there.
    limits = archives.ArchiveLimits(compressed_bytes=_ANY, uncompressed_bytes=_ANY, file_bytes=_ANY)
    try:
        archives.read_entries(file, limits)
    except ArtifactError as error:
        raise _errors.CommandError(str(error), code="INVALID_ARGUMENT", exit_code=_errors.USAGE) from error


async def _push(
    client: AgentRunner, file: Any, name: str, tag: str, dry_run: bool, bar: Callable[[], Any]
) -> PushSkillResponse:
    from agent_runner.cli import _skill_packs
    from agent_runner.client.errors import UnsupportedError
    from agent_runner.v1.skill_service_pb2 import PushSkillResponse

    try:
        with bar() as sent:
            chunks = _skill_packs.chunks_of(file, sent)
            hash = _skill_packs.hash_of(file)
            return await client.skills.push(name, chunks, tag=tag, hash=hash, dry_run=dry_run)
    except UnsupportedError:
        if dry_run:
            raise
        # A server of the Stigmer API alone takes it in one message.
        file.seek(0)
        skill: Any = await client.resources.push_skill(name, file.read(), tag=tag)
        return PushSkillResponse(skill=skill, new_version=True)


def _tell_push(answer: PushSkillResponse, folder: Folder, dry_run: bool, output: str) -> None:
    skill = answer.skill
    if output == "json":
        found = to_dict(answer)
        found["leftOut"] = [{"name": name, "why": why} for name, why in folder.left_out]
        write(to_json(found))
    else:
        done = "pushed" if answer.new_version else "unchanged"
        write(f"skill/{skill.metadata.slug} {f'would be {done} (dry run)' if dry_run else done}")
        write(_facts(skill))
    for name, why in folder.left_out[:_SHOWN]:
        note(f"left out: {clean(name)} ({why})")
    if len(folder.left_out) > _SHOWN:
        note(f"left out: {len(folder.left_out) - _SHOWN} more")
    for warning in answer.warnings:
        note(f"warning: {clean(warning)}")


def _facts(skill: Skill) -> str:
    status = skill.status
    rows = [
        ("version", status.version_hash),
        ("tag", skill.spec.tag or "-"),
        ("size", f"{_bytes(status.size_bytes)} in {status.file_count} files"),
        ("location", f"/bin/skills/{status.version_hash}/"),
    ]
    return "\n".join(f"  {name:<9} {value}" for name, value in rows)


@skill_command.command("list")
@click.option("-o", "--output", type=FORMATS, default="text", show_default=True)
@connection_options
def list_command(output: str) -> int:
    """List the skills of the organization."""

    async def work(client: AgentRunner) -> list[Any]:
        from agent_runner.client.kinds import SKILL

        return [skill async for skill in client.resources.list(SKILL)]

    skills = online(work)
    if output == "json":
        write(to_json({"items": [to_dict(skill) for skill in skills]}))
    elif not skills:
        note("There are no skills yet. Push one: agent-runner skill push DIRECTORY")
    else:
        write(table(("NAME", "VERSION", "TAG", "SIZE", "DESCRIPTION"), [_row(skill) for skill in skills]))
    return _errors.OK


def _row(skill: Skill) -> Sequence[str]:
    from agent_runner.domain.skills import description_of

    status = skill.status
    size = _bytes(status.size_bytes)
    description = one_line(description_of(skill.spec.skill_md), 80)
    return skill.metadata.slug, status.version_hash[:12], skill.spec.tag or "-", size, description


@skill_command.command("show")
@click.argument("skill", metavar="SKILL[:VERSION]")
@click.option("-o", "--output", type=FORMATS, default="text", show_default=True)
@connection_options
def show_command(skill: str, output: str) -> int:
    """Show a skill: its version, its tag and its SKILL.md."""

    async def work(client: AgentRunner) -> Skill:
        return await client.skills.get(*_named(skill))

    found = online(work)
    if output == "json":
        write(to_json(to_dict(found)))
    else:
        write(f"skill/{found.metadata.slug}\n{_facts(found)}\n\n{clean(found.spec.skill_md)}")
    return _errors.OK


@skill_command.command("history")
@click.argument("skill")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="0 for all.")
@click.option("-o", "--output", type=FORMATS, default="text", show_default=True)
@connection_options
def history_command(skill: str, limit: int, output: str) -> int:
    """List a skill's versions, newest first."""

    async def work(client: AgentRunner) -> list[Any]:
        return await client.skills.versions(skill, limit=limit)

    versions = online(work)
    if output == "json":
        write(to_json({"items": [to_dict(version) for version in versions]}))
        return _errors.OK
    rows = [
        (
            version.time.partition(".")[0].rstrip("Z") + "Z",
            version.hash,
            version.tag or "-",
            _bytes(version.size_bytes),
            "current" if version.current else "",
        )
        for version in versions
    ]
    write(table(("TIME", "VERSION", "TAG", "SIZE", ""), rows))
    return _errors.OK


@skill_command.command("pull", short_help="Pull a version into a new folder.")
@click.argument("skill", metavar="SKILL[:VERSION]")
@click.argument("directory", type=click.Path(path_type=Path), required=False)
@click.option(
    "--zip", "as_zip", is_flag=True, help="Keep the zip as it was pushed, as SLUG.zip or DIRECTORY."
)
@click.option("--no-progress", is_flag=True, help="No progress bar.")
@connection_options
def pull_command(skill: str, directory: Path | None, as_zip: bool, no_progress: bool) -> int:
    """Pull a version into a new DIRECTORY, else one named as the skill."""
    import tempfile

    slug, version = _named(skill)
    target = directory or Path(f"{slug}.zip" if as_zip else slug)
    if target.exists():
        raise _errors.CommandError(
            f"{target} is there already.", code="ALREADY_EXISTS", exit_code=_errors.CONFLICT
        )

    with tempfile.TemporaryFile() as file:

        async def work(client: AgentRunner) -> Skill:
            found = await client.skills.get(slug, version)
            with _bar("Pulling", found.status.size_bytes, no_progress) as got:
                async for chunk in client.skills.artifact(found.status.artifact_storage_key):
                    file.write(chunk)
                    got(len(chunk))
            return found

        found = online(work)
        _unpack(file, found.status.version_hash, target, as_zip)
    write(f"skill/{found.metadata.slug} {found.status.version_hash[:12]} pulled to {target}")
    return _errors.OK


def _unpack(file: BinaryIO, hash: str, target: Path, as_zip: bool) -> None:
    import shutil

    from agent_runner.cli import _skill_packs
    from agent_runner.domain import archives

    if _skill_packs.hash_of(file) != hash:
        raise _errors.CommandError("What came is not what was pushed: its hash is wrong.", code="DATA_LOSS")
    if as_zip:
        file.seek(0)
        with target.open("xb") as kept:
            shutil.copyfileobj(file, kept)
        return
    # Checked before anything is written, since the server may be another one's.
    entries = archives.read_entries(file, archives.ArchiveLimits())
    archives.check_contents(file, entries)
    target.mkdir(parents=True)
    for entry in entries:
        path = target / entry.name
        if entry.is_dir:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as written:
            for piece in archives.read_file(file, entry):
                written.write(piece)
        path.chmod(entry.mode)


@skill_command.command("rollback", short_help="Make an earlier version current again.")
@click.argument("skill")
@click.argument("version")
@click.option("--tag", metavar="TAG", default="", help="Tag to move to it; else the one it had.")
@connection_options
def rollback_command(skill: str, version: str, tag: str) -> int:
    """Make an earlier VERSION current again: a tag, a hash, or its first 8 or more digits."""

    async def work(client: AgentRunner) -> Skill:
        return await client.skills.rollback(skill, version, tag=tag)

    found = online(work)
    write(
        f"skill/{found.metadata.slug} is at {found.status.version_hash[:12]} ({found.spec.tag or 'no tag'})"
    )
    return _errors.OK


@skill_command.command("delete")
@click.argument("skill")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also when agents refer to it.")
@connection_options
def delete_command(skill: str, yes: bool, force: bool) -> int:
    """Remove a skill with all its versions."""
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"Nobody can be asked whether to delete skill/{skill}. Give --yes.")
        if not click.confirm(f"Delete skill/{skill} with all its versions?", err=True):
            return _errors.FAILED

    async def work(client: AgentRunner) -> list[str]:
        return await client.skills.delete(skill, force=force)

    agents = online(work)
    write(f"skill/{skill} deleted")
    if agents:
        note(f"These agents still refer to it: {', '.join(agents)}")
    return _errors.OK


@skill_command.command("lint", short_help="Check a folder, and say what would be pushed.")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".")
@click.option("--strict", is_flag=True, help="Exit with 1 when there is any advice.")
@shared_options
def lint_command(directory: Path, strict: bool) -> int:
    """Check a folder by the Agent Skills specification, and say what would be pushed. Needs no server."""
    import tempfile

    from agent_runner.domain import archives, skills

    folder, name = _checked(directory, None)
    with tempfile.TemporaryFile() as file:
        _pack(folder, file, lambda _: None)
        size = file.seek(0, 2)
        entries = archives.read_entries(file, archives.ArchiveLimits())
    advice = skills.advice(_read_skill_md(directory), name, entries)
    for line in advice:
        write(f"advice: {clean(line)}")
    write(f"skill/{name}: {len(folder.files)} files, {_bytes(size)} packed, {len(folder.left_out)} left out")
    return _errors.FAILED if strict and advice else _errors.OK


def _named(text: str) -> tuple[str, str]:
    """Slug and version of `SLUG[:VERSION]`."""
    slug, _, version = text.partition(":")
    if not slug:
        raise click.UsageError(f"{text!r} names no skill; write SLUG or SLUG:VERSION.")
    return slug, version


def _bytes(size: int) -> str:
    """`812 B`, `1.2 MB`: decimal units."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"


@contextmanager
def _bar(label: str, length: int, hidden: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, told of steps; none in a pipe, in CI, or for what is done at once."""
    import os

    plain = not sys.stderr.isatty() or bool(os.environ.get("CI")) or os.environ.get("TERM") == "dumb"
    if hidden or plain or length < 1_000_000:
        yield lambda _: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        yield bar.update
