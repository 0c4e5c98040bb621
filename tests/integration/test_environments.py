"""Variables of an execution: sealed where they lie, in clear for its holder alone, gone at its end."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from agent_runner.adapters.announcers.memory import MemoryAnnouncer
from agent_runner.adapters.secrets.keyring import Keyring, new_key
from agent_runner.adapters.store.memory import MemoryEventLog, MemoryResourceStore
from agent_runner.domain.kinds import AGENT, AGENT_EXECUTION, ENVIRONMENT, KINDS, KindSpec
from agent_runner.domain.masking import MASK
from agent_runner.domain.phases import phase_name
from agent_runner.errors import (
    FailedPreconditionError,
    FencedError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    SecretUnreadableError,
)
from agent_runner.ports.stores import LogHead, ResourceKey, StoredResource
from agent_runner.services._attempt_tokens import digest_of
from agent_runner.services._clocks import IdSource
from agent_runner.services._logbook import Logbook
from agent_runner.services.agent_instances import AgentInstanceService
from agent_runner.services.environments import ExecutionEnvironments, context_key
from agent_runner.services.execution_records import ExecutionRecords
from agent_runner.services.key_rotation import KeyRotation
from agent_runner.services.secret_fields import SecretFields, mask
from agent_runner.v1.events_pb2 import ExecutionEvent, PhaseChanged
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED, EXECUTION_IN_PROGRESS
from ai.stigmer.agentic.agentinstance.v1.api_pb2 import AgentInstance
from ai.stigmer.agentic.environment.v1.api_pb2 import Environment
from ai.stigmer.agentic.executioncontext.v1.api_pb2 import ExecutionContext
from ai.stigmer.agentic.mcpserver.v1.api_pb2 import McpServer
from ai.stigmer.agentic.session.v1.api_pb2 import Session
from ai.stigmer.commons.apiresource.enum_pb2 import ApiResourceOwnerScope

SECRET = "canary-4711-abcdef"
TOKEN = "as StartAttempt gave it"
EXECUTION = "aex-01hzzzzzzzzzzzzzzzzzzzzzzz"
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def environment(slug: str = "base", org: str = "acme", **data: str | tuple[str, bool]) -> Environment:
    found = Environment()
    found.metadata.id, found.metadata.org, found.metadata.slug = f"env-{slug}", org, slug
    for name, value in data.items():
        text, secret = value if isinstance(value, tuple) else (value, False)
        found.spec.data[name].value, found.spec.data[name].is_secret = text, secret
    return found


class World:
    """A store with an execution that attempt 1 holds."""

    def __init__(self, keys: str | None = None) -> None:
        self.store, self.events = MemoryResourceStore(), MemoryEventLog()
        self.secrets = SecretFields(Keyring.parse(keys or f"k1:{new_key()}"))
        self.environments = self.with_keys(self.secrets)
        self.agent, self.instance = Agent(), AgentInstance()
        self.session, self.execution = Session(), AgentExecution()
        for resource, prefix in (
            (self.agent, "agt"),
            (self.instance, "ain"),
            (self.session, "ses"),
            (self.execution, "aex"),
        ):
            resource.metadata.id = resource.metadata.slug = f"{prefix}-01hzzzzzzzzzzzzzzzzzzzzzzz"
            resource.metadata.org = "acme"
        self.instance.spec.agent_id = self.agent.metadata.id
        self.session.spec.agent_instance_id = self.instance.metadata.id
        self.execution.spec.session_id = self.session.metadata.id

    def with_keys(self, secrets: SecretFields) -> ExecutionEnvironments:
        """The service in a process of its own."""
        records = ExecutionRecords(self.store, lambda: NOW)
        logbook = Logbook(records, self.events, MemoryAnnouncer(), clock=lambda: NOW, replicas=True)
        return ExecutionEnvironments(self.store, logbook, secrets, clock=lambda: NOW)

    def refer(self, slug: str, org: str = "") -> None:
        self.instance.spec.environment_refs.add(slug=slug, org=org)

    async def keep(self, resource: Any, **fields: str) -> None:
        kind = next(kind for kind in KINDS if kind.message is type(resource))
        sealed = type(resource)()
        sealed.CopyFrom(resource)
        self.secrets.seal(kind.name, sealed)
        metadata = sealed.metadata
        key = ResourceKey(kind.name, metadata.id)
        await self.store.put(
            StoredResource(key, metadata.org, metadata.slug, sealed.SerializeToString(), fields=fields),
            expected=0,
        )

    async def start(self, attempt: int = 1) -> None:
        for resource in (self.agent, self.instance, self.session):
            await self.keep(resource)
        await self.keep(self.execution, phase=phase_name(EXECUTION_IN_PROGRESS))
        head = LogHead(last_seq=1, attempt=attempt, token=digest_of(TOKEN))
        await self.events.append(EXECUTION, [b""], expected_seq=0, head=head)

    async def stored(self, kind: KindSpec[Any], resource_id: str) -> Any:
        return kind.message.FromString((await self.store.get(ResourceKey(kind.name, resource_id))).body)

    def bytes(self) -> bytes:
        return b"".join(resource.body for resource in self.store._resources.values())


async def test_layers_are_merged_and_the_holder_gets_secrets_in_clear() -> None:
    world = World()
    world.agent.spec.env_spec.data["URL"].value = "http://agent"
    world.agent.spec.env_spec.data["TOKEN"].is_secret = True
    world.refer("base")
    world.execution.spec.runtime_env["MODE"].value = "fast"
    await world.keep(environment(TOKEN=(SECRET, True), URL="http://base"))
    await world.start()

    answer = await world.environments.resolve(EXECUTION, 1, TOKEN)

    assert [(v.name, v.value, v.is_secret, v.source) for v in answer.variables] == [
        ("MODE", "fast", False, "runtime"),
        ("TOKEN", SECRET, True, "environment base"),
        ("URL", "http://base", False, "environment base"),
    ]
    assert not answer.missing


async def test_secrets_are_nowhere_in_the_store() -> None:
    world = World()
    world.agent.spec.env_spec.data["A"].value, world.agent.spec.env_spec.data["A"].is_secret = SECRET, True
    value = world.execution.spec.runtime_env["B"]
    value.value, value.is_secret = SECRET, True
    server = McpServer()
    server.metadata.id, server.metadata.slug, server.metadata.org = "mcp-1", "files", "acme"
    server.spec.env_spec.data["C"].value, server.spec.env_spec.data["C"].is_secret = SECRET, True
    world.agent.spec.mcp_servers.add(name="files")
    await world.keep(server)
    await world.start()

    answer = await world.environments.resolve(EXECUTION, 1, TOKEN)

    assert {v.value for v in answer.variables} == {SECRET}
    assert answer.mcp_servers[0].spec.env_spec.data["C"].value == SECRET
    assert world.bytes().count(b"v1.k1.") == 5  # each, and the two of the context again
    assert SECRET.encode() not in world.bytes()


async def test_every_attempt_gets_what_the_first_one_got() -> None:
    world = World()
    world.refer("base")
    await world.keep(environment(URL="first"))
    await world.start()
    await world.environments.resolve(EXECUTION, 1, TOKEN)

    await world.store.delete(ResourceKey(ENVIRONMENT.name, "env-base"))
    head = await world.events.head(EXECUTION)
    await world.events.append(
        EXECUTION,
        [b""],
        expected_seq=head.last_seq,
        head=LogHead(last_seq=2, attempt=2, token=digest_of(TOKEN)),
    )

    answer = await world.environments.resolve(EXECUTION, 2, TOKEN)

    assert [(v.value, v.source) for v in answer.variables] == [("first", "environment base")]


async def test_an_older_attempt_gets_nothing() -> None:
    world = World()
    await world.start(attempt=2)

    with pytest.raises(FencedError):
        await world.environments.resolve(EXECUTION, 1, TOKEN)


@pytest.mark.parametrize(
    ("token", "problem"), [("", "`token` is missing"), ("guessed", "`token` is another one")]
)
async def test_who_does_not_have_the_token_of_the_attempt_gets_nothing(token: str, problem: str) -> None:
    world = World()
    world.execution.spec.runtime_env["TOKEN"].value = SECRET
    await world.start()

    with pytest.raises(PermissionDeniedError, match=problem) as caught:
        await world.environments.resolve(EXECUTION, 1, token)
    assert SECRET not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert digest_of(TOKEN).hex() not in str(caught.value)


async def test_an_attempt_that_was_given_no_token_has_none() -> None:
    world = World()
    await world.start()
    head = LogHead(last_seq=2, attempt=1)  # as an earlier release has written it
    await world.events.append(EXECUTION, [b""], expected_seq=1, head=head)

    with pytest.raises(PermissionDeniedError):
        await world.environments.resolve(EXECUTION, 1, "")


async def test_an_execution_that_has_ended_gives_nothing_out() -> None:
    world = World()
    await world.start()
    end = ExecutionEvent(phase_changed=PhaseChanged(phase=EXECUTION_COMPLETED))
    head = LogHead(last_seq=2, attempt=1, token=digest_of(TOKEN))
    await world.events.append(EXECUTION, [end.SerializeToString()], expected_seq=1, head=head)

    with pytest.raises(FailedPreconditionError, match="has ended"):
        await world.environments.resolve(EXECUTION, 1, TOKEN)


async def test_missing_variables_are_named_and_nothing_is_kept() -> None:
    world = World()
    world.agent.spec.env_spec.data["TOKEN"].is_secret = True
    world.agent.spec.env_spec.data["URL"].value = ""
    await world.start()

    answer = await world.environments.resolve(EXECUTION, 1, TOKEN)

    assert list(answer.missing) == ["TOKEN", "URL"]
    with pytest.raises(NotFoundError):
        await world.store.get(context_key(EXECUTION))


async def test_an_environment_that_is_not_there_is_named() -> None:
    world = World()
    world.refer("nowhere")
    await world.start()

    with pytest.raises(NotFoundError, match=r"'nowhere'.*organization 'acme'"):
        await world.environments.resolve(EXECUTION, 1, TOKEN)


@pytest.mark.parametrize("org", ["other", ""])
async def test_an_environment_of_another_organization_is_never_read(org: str) -> None:
    world = World()
    world.refer("theirs", org)
    await world.keep(environment("theirs", "other", TOKEN=(SECRET, True)))
    await world.start()

    with pytest.raises((InvalidRequestError, NotFoundError)) as caught:
        await world.environments.resolve(EXECUTION, 1, TOKEN)
    assert SECRET not in str(caught.value)


async def test_the_context_is_masked_for_people_and_gone_at_the_end() -> None:
    world = World()
    world.execution.spec.runtime_env["B"].value = "plain"
    value = world.execution.spec.runtime_env["TOKEN"]
    value.value, value.is_secret = SECRET, True
    await world.start()
    await world.environments.resolve(EXECUTION, 1, TOKEN)

    context = ExecutionContext.FromString((await world.store.get(context_key(EXECUTION))).body)
    mask(context)
    assert {n: v.value for n, v in context.spec.data.items()} == {"B": "plain", "TOKEN": MASK}
    assert context.spec.execution_id == EXECUTION

    await world.environments.forget(EXECUTION)
    await world.environments.forget(EXECUTION)
    with pytest.raises(NotFoundError):
        await world.store.get(context_key(EXECUTION))


async def test_what_a_crash_left_behind_is_swept_and_nothing_else() -> None:
    world = World()
    world.execution.spec.runtime_env["A"].value = "b"
    await world.start()
    await world.environments.resolve(EXECUTION, 1, TOKEN)
    by_hand = ExecutionContext()
    by_hand.metadata.id, by_hand.spec.execution_id = "exec-mine", "aex-x"
    await world.keep(by_hand)

    assert await world.environments.sweep() == 0
    await world.store.delete(ResourceKey(AGENT_EXECUTION.name, EXECUTION))
    assert await world.environments.sweep() == 1
    assert await world.store.get(ResourceKey("execution_context", "exec-mine"))


async def test_a_keyring_without_the_needed_key_says_which() -> None:
    world = World()
    value = world.execution.spec.runtime_env["TOKEN"]
    value.value, value.is_secret = SECRET, True
    await world.start()
    others = SecretFields(Keyring.parse(f"k2:{new_key()}"))
    environments = world.with_keys(others)

    with pytest.raises(SecretUnreadableError, match=r"TOKEN of agent_execution .* key 'k1'"):
        await environments.resolve(EXECUTION, 1, TOKEN)


def test_the_mask_sent_back_keeps_what_is_stored() -> None:
    secrets = SecretFields(Keyring.parse(f"k1:{new_key()}"))
    before = environment(TOKEN=(SECRET, True), NAME="x")
    secrets.seal(ENVIRONMENT.name, before)
    shown = environment()
    shown.CopyFrom(before)
    mask(shown)
    assert {n: v.value for n, v in shown.spec.data.items()} == {"TOKEN": MASK, "NAME": "x"}

    shown.spec.data["NAME"].value = "y"
    secrets.seal(ENVIRONMENT.name, shown, before)
    secrets.open(ENVIRONMENT.name, shown)

    assert {n: v.value for n, v in shown.spec.data.items()} == {"TOKEN": SECRET, "NAME": "y"}


def test_a_mask_with_nothing_behind_it_is_refused() -> None:
    secrets = SecretFields(Keyring.parse(f"k1:{new_key()}"))

    with pytest.raises(InvalidRequestError, match=r'spec.data\["TOKEN"\]: is \*'):
        secrets.seal(ENVIRONMENT.name, environment(TOKEN=(MASK, True)))


def test_a_secret_does_not_become_public_by_sending_its_mask() -> None:
    secrets = SecretFields(Keyring.parse(f"k1:{new_key()}"))
    before = environment(TOKEN=(SECRET, True))
    secrets.seal(ENVIRONMENT.name, before)

    with pytest.raises(InvalidRequestError, match="to make it public"):
        secrets.seal(ENVIRONMENT.name, environment(TOKEN=(MASK, False)), before)


def test_a_secret_of_a_megabyte_and_a_bad_name_are_refused_by_name() -> None:
    secrets = SecretFields(Keyring.parse(f"k1:{new_key()}"))

    with pytest.raises(InvalidRequestError) as caught:
        secrets.seal(ENVIRONMENT.name, environment(**{"BIG": ("s" * (1 << 20), True), "A-B": "x"}))
    assert [v.field for v in caught.value.violations] == ['spec.data["A-B"]', 'spec.data["BIG"]', "spec.data"]


async def test_rotation_leaves_no_value_with_the_old_key_and_can_be_repeated() -> None:
    old, new = new_key(), new_key()
    world = World(f"k1:{old}")
    world.agent.spec.env_spec.data["A"].value, world.agent.spec.env_spec.data["A"].is_secret = SECRET, True
    await world.keep(environment(TOKEN=(SECRET, True), EMPTY=("", True), PLAIN="p"))
    await world.start()
    secrets = SecretFields(Keyring.parse(f"k2:{new},k1:{old}"))

    first = await KeyRotation(world.store, secrets).run()
    second = await KeyRotation(world.store, secrets).run()

    assert (first.rotated, dict(first.left), first.unreadable) == (2, {"k2": 2}, [])
    assert (second.rotated, dict(second.left)) == (0, {"k2": 2})
    agent = await world.stored(AGENT, world.agent.metadata.id)
    SecretFields(Keyring.parse(f"k2:{new}")).open(AGENT.name, agent)
    assert agent.spec.env_spec.data["A"].value == SECRET


async def test_rotation_goes_on_past_what_it_cannot_read() -> None:
    world = World()
    await world.keep(environment("one", TOKEN=(SECRET, True)))
    lost = await KeyRotation(world.store, SecretFields(Keyring.parse(f"k2:{new_key()}"))).run()

    assert lost.rotated == 0
    assert dict(lost.left) == {"k1": 1}
    assert "key 'k1'" in lost.unreadable[0]


async def test_an_instance_cannot_refer_to_an_environment_of_another_organization() -> None:
    world = World()
    world.instance.metadata.owner_scope = ApiResourceOwnerScope.organization
    world.instance.api_version, world.instance.kind = "agentic.stigmer.ai/v1", "AgentInstance"
    await world.keep(world.agent)
    instances = AgentInstanceService(world.store, clock=lambda: NOW, new_id=IdSource())
    world.refer("theirs", "other")

    with pytest.raises(InvalidRequestError, match=r"environment_refs\[0\].org: must be the instance's own"):
        await instances.create(world.instance)


async def test_an_execution_without_variables_keeps_no_context() -> None:
    world = World()
    await world.start()

    assert not (await world.environments.resolve(EXECUTION, 1, TOKEN)).variables
    with pytest.raises(NotFoundError):
        await world.store.get(context_key(EXECUTION))
