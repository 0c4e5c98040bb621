"""What the tables of `get` show, a function per kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from agent_runner.cli._output import age, one_line, table
from agent_runner.client.kinds import (
    AGENT,
    CONTEXT,
    ENVIRONMENT,
    EXECUTION,
    INSTANCE,
    MCP_SERVER,
    SESSION,
    SKILL,
    Kind,
)

Cell = Callable[[Any], str]
Columns = Sequence[tuple[str, Cell]]
_MESSAGE = 60


def render(kind: Kind, resources: Sequence[Any], *, wide: bool, all_orgs: bool = False) -> str:
    """A table of resources of one kind."""
    columns = list(_COLUMNS[kind])
    if all_orgs:
        columns.insert(0, ("ORG", lambda r: r.metadata.org))
    if wide:
        columns += _WIDE.get(kind, ())
        columns += [("ID", lambda r: r.metadata.id)] if columns[0][0] == "NAME" else []
        columns.append(("LABELS", _labels))
    return table([name for name, _ in columns], [[cell(r) or "-" for _, cell in columns] for r in resources])


def name_of(kind: Kind, resource: Any) -> str:
    """What a person calls a resource by: its slug where that is unique, else its id."""
    if kind.query("getByReference") is None:
        return str(resource.metadata.id)
    return str(resource.metadata.slug or resource.metadata.id)


def created_at(resource: Any) -> datetime | None:
    audit = resource.status.audit.spec_audit
    if not audit.HasField("created_at"):
        return None
    return datetime.fromtimestamp(audit.created_at.seconds, tz=UTC)


def _age(resource: Any) -> str:
    return age(created_at(resource))


def _slug(resource: Any) -> str:
    return str(resource.metadata.slug or resource.metadata.name or resource.metadata.id)


def _labels(resource: Any) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(resource.metadata.labels.items()))


def _description(resource: Any) -> str:
    return one_line(resource.spec.description, _MESSAGE)


def _phase(resource: Any) -> str:
    from agent_runner.client.executions import phase_name

    name = phase_name(resource.status.phase)
    run = resource.status.run
    if run.paused:
        return f"{name} (paused)"
    return f"{name} ({run.queue_position} before it)" if run.queue_position else name


def _server_type(resource: Any) -> str:
    return resource.spec.WhichOneof("server_type") or ""


_COLUMNS: dict[Kind, Columns] = {
    AGENT: (("NAME", _slug), ("DESCRIPTION", _description), ("AGE", _age)),
    INSTANCE: (("NAME", _slug), ("AGENT", lambda r: r.spec.agent_id), ("AGE", _age)),
    SESSION: (
        ("ID", lambda r: r.metadata.id),
        ("INSTANCE", lambda r: r.spec.agent_instance_id),
        ("SUBJECT", lambda r: one_line(r.spec.subject, _MESSAGE)),
        ("AGE", _age),
    ),
    EXECUTION: (
        ("ID", lambda r: r.metadata.id),
        ("PHASE", _phase),
        ("AGE", _age),
        ("MESSAGE", lambda r: one_line(r.spec.message, _MESSAGE)),
    ),
    ENVIRONMENT: (
        ("NAME", _slug),
        ("VARIABLES", lambda r: str(len(r.spec.data))),
        ("DESCRIPTION", _description),
        ("AGE", _age),
    ),
    SKILL: (
        ("NAME", _slug),
        ("TAG", lambda r: r.spec.tag),
        ("VERSION", lambda r: r.status.version_hash[:12]),
        ("AGE", _age),
    ),
    MCP_SERVER: (("NAME", _slug), ("TYPE", _server_type), ("DESCRIPTION", _description), ("AGE", _age)),
    CONTEXT: (("NAME", _slug), ("EXECUTION", lambda r: r.spec.execution_id), ("AGE", _age)),
}
_WIDE: dict[Kind, Columns] = {
    AGENT: (("MODEL", lambda r: r.spec.options.model.model_name),),
    EXECUTION: (
        ("SESSION", lambda r: r.spec.session_id),
        ("AGENT", lambda r: r.spec.agent_id),
        ("MODEL", lambda r: r.status.run.model),
        ("TOKENS", lambda r: str(r.status.run.usage.input_tokens + r.status.run.usage.output_tokens)),
    ),
    SESSION: (("THREAD", lambda r: r.spec.thread_id), ("SANDBOX", lambda r: r.spec.sandbox_id)),
}
