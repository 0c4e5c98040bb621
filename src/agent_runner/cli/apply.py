"""`apply`: manifests to resources, checked as a whole before anything is changed."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent_runner.cli import _errors
from agent_runner.cli._connection import connection, online
from agent_runner.cli._options import connection_options
from agent_runner.cli._output import note, to_dict, to_json, to_yaml, write
from agent_runner.cli.run import absolute_script
from agent_runner.domain.slugs import slug_of
from agent_runner.errors import AgentRunnerError

if TYPE_CHECKING:
    from agent_runner.cli._manifests import Manifest
    from agent_runner.client import AgentRunner


@click.command("apply")
@click.option(
    "-f",
    "--filename",
    "paths",
    multiple=True,
    required=True,
    metavar="FILE|DIR|-",
    help="YAML manifests; may be repeated.",
)
@click.option("-R", "--recursive", is_flag=True, help="Take directories with everything below them.")
@click.option(
    "--dry-run",
    type=click.Choice(["client", "server"]),
    help="Change nothing: check here alone, or say what the server would do.",
)
@click.option(
    "-o", "--output", type=click.Choice(["text", "name", "json", "yaml"]), default="text", show_default=True
)
@connection_options
def apply_command(paths: Sequence[str], recursive: bool, dry_run: str | None, output: str) -> int:
    """Make the resources in manifests, or change those there are.

    Manifests of every kind, several per file, in any order: what others refer to is applied first. Agents,
    instances and sessions may be referred to by name where the API wants an id.
    """
    from agent_runner.cli import _manifests

    where = connection()
    manifests = _manifests.load(_read(paths, recursive), org=where.org)
    if not manifests:
        raise _errors.CommandError("There is no manifest in it.", code="USAGE", exit_code=_errors.USAGE)
    for manifest in manifests:
        _find_scripts(manifest)
    if problems := _manifests.check(manifests):
        raise _manifests.invalid(problems)
    if dry_run == "client":
        for manifest in manifests:
            _print(manifest, manifest.resource, "valid (dry run)", output)
        return _errors.OK
    return online(lambda client: _apply_all(client, manifests, output, dry_run == "server"), where)


def _read(paths: Sequence[str], recursive: bool) -> list[tuple[str, str]]:
    from agent_runner.cli._manifests import files_of

    sources = [("stdin", sys.stdin.read())] if "-" in paths else []
    for path in files_of([path for path in paths if path != "-"], recursive=recursive):
        try:
            sources.append((str(path), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError as error:
            raise _errors.CommandError(
                f"{path} is no text in UTF-8.", code="INVALID_ARGUMENT", exit_code=_errors.USAGE
            ) from error
    return sources


def _find_scripts(manifest: Manifest) -> None:
    """Paths of scripted models are meant from the manifest on; the runner works elsewhere."""
    base = Path.cwd() if manifest.file == "stdin" else Path(manifest.file).parent
    if manifest.kind.name == "Agent" and manifest.resource.spec.options.model.model_name:
        model = manifest.resource.spec.options.model
        model.model_name = absolute_script(model.model_name, base)
    if manifest.kind.name == "AgentExecution" and manifest.resource.spec.execution_config.model_name:
        config = manifest.resource.spec.execution_config
        config.model_name = absolute_script(config.model_name, base)


async def _apply_all(client: AgentRunner, manifests: Sequence[Manifest], output: str, dry: bool) -> int:
    planned: set[tuple[str, str]] = set()
    for done, manifest in enumerate(manifests):
        try:
            await _resolve(client, manifest, planned)
            before = await _existing(client, manifest)
            if dry:
                planned.add((manifest.kind.name, _slug(manifest.resource)))
                _print(manifest, manifest.resource, f"{_foreseen(manifest, before)} (server dry run)", output)
                continue
            after = await _apply(client, manifest)
        except AgentRunnerError as error:
            raise _told(manifest, error, done) from error
        _print(manifest, after, _change(manifest, before, after), output)
    return _errors.OK


def _told(manifest: Manifest, error: Exception, done: int) -> Exception:
    """An error of the server, with the place in the file it is about."""
    from agent_runner.errors import InvalidRequestError

    if done:
        note(f"{done} of the manifests {'was' if done == 1 else 'were'} applied before this.")
    if not isinstance(error, InvalidRequestError):
        note(f"{manifest.file}:{manifest.place('')[0]}: {manifest.kind.word}/{_slug(manifest.resource)}")
        return error
    return _errors.CommandError(
        f"{manifest.kind.word}/{_slug(manifest.resource)} is not valid.",
        code="INVALID_ARGUMENT",
        exit_code=_errors.USAGE,
        lines=[str(manifest.problem(violation)) for violation in error.violations],
    )


async def _existing(client: AgentRunner, manifest: Manifest) -> Any:
    """The resource as it is before; None when it will be made."""
    from agent_runner.client.kinds import EXECUTION

    metadata = manifest.resource.metadata
    if manifest.kind is EXECUTION:
        return None
    if metadata.id:
        return await client.resources.find(manifest.kind, metadata.id)
    if manifest.kind.query("getByReference") is None:
        async for resource in client.resources.list(manifest.kind, org=metadata.org):
            if resource.metadata.slug == _slug(manifest.resource):  # type: ignore[attr-defined]
                return resource
        return None
    return await client.resources.find(manifest.kind, _slug(manifest.resource), org=metadata.org)


async def _apply(client: AgentRunner, manifest: Manifest) -> Any:
    from agent_runner.client.kinds import EXECUTION, SKILL

    resource = manifest.resource
    if manifest.kind is SKILL:
        name, org = resource.metadata.name or resource.metadata.slug, resource.metadata.org
        archive = skill_archive(resource.spec.skill_md)
        return await client.resources.push_skill(name, archive, org=org, tag=resource.spec.tag)
    if manifest.kind is EXECUTION and not resource.metadata.name:
        resource.metadata.name = f"execution-{time.time_ns() // 1000}"
    return await client.resources.apply(resource)


def skill_archive(skill_md: str) -> bytes:
    """A skill's archive with nothing but its SKILL.md; the same text gives the same bytes."""
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("SKILL.md", (1980, 1, 1, 0, 0, 0)), skill_md)
    return buffer.getvalue()


async def _resolve(client: AgentRunner, manifest: Manifest, planned: set[tuple[str, str]]) -> None:
    """Put ids where a manifest names an agent, an instance or a session."""
    from agent_runner.client import kinds
    from agent_runner.errors import NotFoundError, Violation

    spec, org = manifest.resource.spec, manifest.resource.metadata.org
    fields = {
        kinds.INSTANCE: (("agent_id", kinds.AGENT),),
        kinds.SESSION: (("agent_instance_id", kinds.INSTANCE),),
        kinds.EXECUTION: (("agent_id", kinds.AGENT), ("session_id", kinds.SESSION)),
    }
    for name, kind in fields.get(manifest.kind, ()):
        value = getattr(spec, name)
        if not value or kind.is_id(value) or (kind.name, value) in planned:
            continue
        try:
            found = await client.resources.get(kind, value, org=org)
        except NotFoundError as error:
            problem = manifest.problem(Violation(f"spec.{name}", str(error)))
            raise _errors.CommandError(
                f"{manifest.kind.word}/{_slug(manifest.resource)} refers to what is not there.",
                code="NOT_FOUND",
                exit_code=_errors.NOT_FOUND,
                lines=[str(problem)],
            ) from error
        setattr(spec, name, found.metadata.id)  # type: ignore[attr-defined]


def _slug(resource: Any) -> str:
    return str(resource.metadata.slug or slug_of(resource.metadata.name))


def _foreseen(manifest: Manifest, before: Any) -> str:
    if before is None:
        return "created"
    wanted, present = type(before)(), type(before)()
    wanted.spec.CopyFrom(manifest.resource.spec)
    present.spec.CopyFrom(before.spec)
    return "unchanged" if wanted == present else "configured"


def _change(manifest: Manifest, before: Any, after: Any) -> str:
    """What became of it, in the words of kubectl."""
    if before is None:
        return "created"
    if _updated_at(before) == _updated_at(after) and _updated_at(after) is not None:
        return "unchanged"
    # Secrets come back masked, so two equal answers do not tell that nothing changed.
    if _has_secrets(manifest.resource) or _without_history(before) != _without_history(after):
        return "configured"
    return "unchanged"


def _updated_at(resource: Any) -> Any:
    audit = resource.status.audit.spec_audit
    return (audit.updated_at.seconds, audit.updated_at.nanos) if audit.HasField("updated_at") else None


def _has_secrets(resource: Any) -> bool:
    data = getattr(resource.spec, "data", None) or getattr(
        getattr(resource.spec, "env_spec", None), "data", {}
    )
    return any(value.is_secret for value in data.values())


def _without_history(resource: Any) -> Any:
    copy = type(resource)()
    copy.CopyFrom(resource)
    copy.ClearField("status")
    copy.metadata.ClearField("version")
    if hasattr(resource.status, "version_hash"):
        copy.status.version_hash = resource.status.version_hash
    return copy


def _print(manifest: Manifest, resource: Any, change: str, output: str) -> None:
    name = f"{manifest.kind.word}/{_name(manifest, resource)}"
    if output == "json":
        write(to_json(to_dict(resource)))
    elif output == "yaml":
        write("---\n" + to_yaml(to_dict(resource)))
    else:
        write(name if output == "name" else f"{name} {change}")


def _name(manifest: Manifest, resource: Any) -> str:
    from agent_runner.client.kinds import EXECUTION

    if manifest.kind is EXECUTION:
        return str(resource.metadata.id or "(new)")
    return _slug(resource) or str(resource.metadata.id)
