"""The variables of one execution: merged when it starts, kept as its ExecutionContext, gone at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog
from google.protobuf.message import Message

from agent_runner.domain.environments import UNSET, MergedEnvironment, resolve
from agent_runner.domain.ids import suffix
from agent_runner.domain.kinds import (
    AGENT,
    AGENT_EXECUTION,
    AGENT_INSTANCE,
    API_VERSION,
    ENVIRONMENT,
    EXECUTION_CONTEXT,
    MCP_SERVER,
    SESSION,
    KindSpec,
    R,
)
from agent_runner.domain.masking import Masker
from agent_runner.domain.paging import MOST
from agent_runner.domain.phases import UNFINISHED_PHASES, phase_name
from agent_runner.domain.references import lookup_of
from agent_runner.errors import (
    AgentRunnerError,
    AlreadyExistsError,
    InvalidRequestError,
    NotFoundError,
    SecretUnreadableError,
)
from agent_runner.ports.stores import ResourceKey, ResourceStore, StoredResource
from agent_runner.services._attempt_tokens import ensure_holds
from agent_runner.services._clocks import Clock, timestamp
from agent_runner.services._logbook import Logbook, checked
from agent_runner.services.execution_records import ExecutionRecord
from agent_runner.services.secret_fields import SecretFields, variables_of
from agent_runner.v1.runner_service_pb2 import (
    ReferencedMcpServer,
    ResolvedVariable,
    ResolveEnvironmentResponse,
)
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agent.v1.spec_pb2 import McpServerDefinition
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentinstance.v1.api_pb2 import AgentInstance
from ai.stigmer.agentic.environment.v1.api_pb2 import Environment
from ai.stigmer.agentic.executioncontext.v1.api_pb2 import ExecutionContext
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference

log = structlog.get_logger(__name__)

SOURCE: Final = "agent-runner/source."
"""Prefix of the annotations of an ExecutionContext that name the layer of each variable."""
_MOST_MASKERS: Final = 256
_UNFINISHED: Final = frozenset(phase_name(phase) for phase in UNFINISHED_PHASES)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the environment of an execution is made of; secrets are sealed."""

    execution: AgentExecution
    instance: AgentInstance
    agent: Agent
    org: str


class ExecutionEnvironments:
    """Gives the holder of an execution its variables."""

    def __init__(
        self, store: ResourceStore, logbook: Logbook, secrets: SecretFields, *, clock: Clock
    ) -> None:
        self._store = store
        self._logbook = logbook
        self._secrets = secrets
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._maskers: dict[str, Masker] = {}

    async def resolve(self, execution_id: str, attempt: int, token: str) -> ResolveEnvironmentResponse:
        """The variables, in clear; the same ones for every attempt of an execution.

        Args:
            token: the one that attempt was given.

        Raises:
            PermissionDeniedError: it is another one.
            FencedError: the attempt does not hold the execution.
            FailedPreconditionError: it has ended, or a secret cannot be decrypted.
            NotFoundError: the execution, or something it refers to, is not there.
            InvalidRequestError: an environment of another organization is referred to.
        """
        execution_id = checked(execution_id)
        parts = await self._parts(await self._held(execution_id, attempt, token))
        known = await self._context(execution_id)
        if known is None:
            merged = await self._merge(parts)
            if merged.missing:
                # The secrets among them are masked in what tells of the failure.
                unkept = self._new_context(execution_id, parts.org, merged)
                return ResolveEnvironmentResponse(missing=merged.missing, variables=_variables(unkept))
            known = await self._keep(parts, merged) if merged.values else ExecutionContext()
        answer = ResolveEnvironmentResponse(variables=_variables(known))
        for definition in parts.agent.spec.mcp_servers:
            if (server := await self._mcp_server(parts, definition)) is not None:
                answer.mcp_servers.append(server)
        return answer

    async def masker(self, execution_id: str) -> Masker:
        """Finds the secrets an execution may have been given, of whatever layer; kept until it ends.

        For what a runner says that does not mask by itself. A layer that is gone, or cannot be
        decrypted, was given to nobody either.

        Raises:
            NotFoundError: the execution is not there.
        """
        execution_id = checked(execution_id)
        known = self._maskers.get(execution_id)
        if known is None:
            async with self._logbook.open(execution_id) as live:
                assert live.record is not None
                known = Masker(await self._secrets_of(live.record.message()))
                if not live.terminal:  # a runner may say something after the end
                    self._remember(execution_id, known)
        return known

    def _remember(self, execution_id: str, masker: Masker) -> None:
        if len(self._maskers) >= _MOST_MASKERS:
            del self._maskers[next(iter(self._maskers))]
        self._maskers[execution_id] = masker

    async def _secrets_of(self, execution: AgentExecution) -> set[str]:
        secret_names: set[str] = set()
        values: list[tuple[str, str]] = []
        for layer in await self._layers(execution):
            for _path, data in variables_of(layer):
                secret_names |= {name for name, variable in data.items() if variable.is_secret}
                values += [(name, variable.value) for name, variable in data.items()]
        return {value for name, value in values if name in secret_names and value not in ("", UNSET)}

    async def _layers(self, execution: AgentExecution) -> list[Message]:
        """Everything variables can come from, in clear, as far as it is there and can be read."""
        found: list[Message | None] = []

        async def note(layer: Awaitable[Message | None]) -> None:
            try:
                found.append(await layer)
            except (NotFoundError, InvalidRequestError, SecretUnreadableError) as error:
                log.info("not all secrets are known", execution_id=execution.metadata.id, reason=str(error))

        await note(self._context(execution.metadata.id))
        await note(self._opened(AGENT_EXECUTION, execution))
        with suppress(NotFoundError):
            parts = await self._parts(execution)
            await note(self._opened(AGENT, parts.agent))
            for reference in parts.instance.spec.environment_refs:
                await note(self._environment(parts, reference))
            for definition in parts.agent.spec.mcp_servers:
                await note(self._mcp_server(parts, definition))
        return [layer for layer in found if layer is not None]

    async def _opened(self, kind: KindSpec[R], resource: Message) -> Message:
        self._secrets.open(kind.name, resource)
        return resource

    def ended(self, record: ExecutionRecord) -> None:
        """Forget, in the background, the variables of an execution that has ended."""
        self._maskers.pop(record.id, None)
        task = asyncio.create_task(self._forget_quietly(record.id), name=f"forget variables of {record.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Let what was begun in the background come to its end."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    async def _forget_quietly(self, execution_id: str) -> None:
        try:
            await self.forget(execution_id)
        except AgentRunnerError as error:
            log.warning("variables wait for the next sweep", execution_id=execution_id, error=str(error))

    async def forget(self, execution_id: str) -> None:
        """Remove the execution's context; nothing happens when there is none."""
        with suppress(NotFoundError):
            # Most executions have no variables, and looking costs far less than a write.
            await self._store.get(context_key(execution_id))
            await self._store.delete(context_key(execution_id))

    async def sweep(self) -> int:
        """Remove contexts a crash has left behind; returns how many went."""
        gone, after = 0, None
        while True:
            rows = await self._store.list(EXECUTION_CONTEXT.name, oldest_first=True, after=after, limit=MOST)
            for row in rows:
                gone += await self._sweep(row)
            if len(rows) < MOST:
                return gone
            after = rows[-1].key.id

    async def _sweep(self, row: StoredResource) -> int:
        execution_id = ExecutionContext.FromString(row.body).spec.execution_id
        if row.key != context_key(execution_id):
            return 0  # one that people have made
        try:
            stored = await self._store.get(ResourceKey(AGENT_EXECUTION.name, execution_id))
        except NotFoundError:
            await self.forget(execution_id)
            return 1
        if stored.fields.get("phase") in _UNFINISHED:
            return 0
        await self.forget(execution_id)
        return 1

    async def _held(self, execution_id: str, attempt: int, token: str) -> AgentExecution:
        """The execution as it is stored, if the attempt holds it and the caller is that attempt."""
        # The log decides: what lists filter by may lag behind it.
        async with self._logbook.open(execution_id, fresh=True) as live:
            head = live.head or await self._logbook.events.head(execution_id)
            ensure_holds(live, head, attempt, token, "variables")
            assert live.record is not None
            return live.record.message()

    async def _parts(self, execution: AgentExecution) -> _Parts:
        session = await self._get(SESSION, execution.spec.session_id)
        instance = await self._get(AGENT_INSTANCE, session.spec.agent_instance_id)
        agent = await self._get(AGENT, instance.spec.agent_id)
        org = instance.metadata.org or session.metadata.org or execution.metadata.org
        return _Parts(execution, instance, agent, org)

    async def _merge(self, parts: _Parts) -> MergedEnvironment:
        self._secrets.open(AGENT.name, parts.agent)
        self._secrets.open(AGENT_EXECUTION.name, parts.execution)
        environments = [
            await self._environment(parts, reference) for reference in parts.instance.spec.environment_refs
        ]
        return resolve(
            parts.agent.spec.env_spec.data,
            [(found.metadata.slug, found.spec.data) for found in environments],
            parts.execution.spec.runtime_env,
        )

    async def _environment(self, parts: _Parts, reference: ApiResourceReference) -> Environment:
        lookup = lookup_of(reference, ENVIRONMENT)
        if lookup.org not in (None, parts.org):
            raise InvalidRequestError.of(
                "spec.environment_refs",
                f"environment {lookup.slug!r} of organization {lookup.org!r} cannot be used by instance "
                f"{parts.instance.metadata.slug!r} of organization {parts.org!r}",
            )
        stored = await self._store.find(ENVIRONMENT.name, parts.org, lookup.slug)
        if stored is None:
            raise NotFoundError(
                ENVIRONMENT.name,
                lookup.slug,
                f"Instance {parts.instance.metadata.slug!r} refers to it in organization {parts.org!r}.",
            )
        environment = Environment.FromString(stored.body)
        self._secrets.open(ENVIRONMENT.name, environment)
        return environment

    async def _context(self, execution_id: str) -> ExecutionContext | None:
        try:
            stored = await self._store.get(context_key(execution_id))
        except NotFoundError:
            return None
        context = ExecutionContext.FromString(stored.body)
        self._secrets.open(EXECUTION_CONTEXT.name, context)
        return context

    async def _keep(self, parts: _Parts, merged: MergedEnvironment) -> ExecutionContext:
        execution_id = parts.execution.metadata.id
        clear = self._new_context(execution_id, parts.org, merged)
        sealed = ExecutionContext()
        sealed.CopyFrom(clear)
        self._secrets.seal(EXECUTION_CONTEXT.name, sealed)
        stored = StoredResource(
            context_key(execution_id), parts.org, clear.metadata.slug, sealed.SerializeToString()
        )
        try:
            await self._store.put(stored, expected=0)
        except AlreadyExistsError:
            return await self._context(execution_id) or clear  # another worker asked at the same time
        return clear

    def _new_context(self, execution_id: str, org: str, merged: MergedEnvironment) -> ExecutionContext:
        context = ExecutionContext(api_version=API_VERSION, kind=EXECUTION_CONTEXT.kind)
        metadata = context.metadata
        metadata.id, metadata.org = context_key(execution_id).id, org
        metadata.name = metadata.slug = execution_id
        context.spec.execution_id = execution_id
        for name, variable in merged.variables.items():
            if variable.value is not None:
                value = context.spec.data[name]
                value.value, value.is_secret = variable.value, variable.is_secret
                metadata.annotations[f"{SOURCE}{name}"] = variable.source
        now = timestamp(self._clock())
        for info in (context.status.audit.spec_audit, context.status.audit.status_audit):
            info.created_by.id = info.updated_by.id = "system"
            info.created_at.CopyFrom(now)
            info.updated_at.CopyFrom(now)
            info.event = "created"
        return context

    async def _mcp_server(self, parts: _Parts, definition: McpServerDefinition) -> ReferencedMcpServer | None:
        """The server a definition refers to; None when it is its own, or is not there."""
        if definition.WhichOneof("server_type") is not None:
            return None
        stored = await self._store.find(MCP_SERVER.name, parts.org, definition.name)
        if stored is None:
            log.info("referenced server is not there", server=definition.name, org=parts.org)
            return None
        server = MCP_SERVER.message.FromString(stored.body)
        self._secrets.open(MCP_SERVER.name, server)
        return ReferencedMcpServer(name=definition.name, spec=server.spec)

    async def _get(self, kind: KindSpec[R], resource_id: str) -> R:
        stored = await self._store.get(ResourceKey(kind.name, resource_id))
        message: Any = kind.message.FromString(stored.body)
        return message  # type: ignore[no-any-return]


def context_key(execution_id: str) -> ResourceKey:
    """The execution's context, whose id follows from the execution's."""
    return ResourceKey(EXECUTION_CONTEXT.name, f"{EXECUTION_CONTEXT.id_prefix}-{suffix(execution_id)}")


def _variables(context: ExecutionContext) -> list[ResolvedVariable]:
    sources: Mapping[str, str] = context.metadata.annotations
    return [
        ResolvedVariable(
            name=name, value=value.value, is_secret=value.is_secret, source=sources.get(f"{SOURCE}{name}", "")
        )
        for name, value in sorted(context.spec.data.items())
    ]
