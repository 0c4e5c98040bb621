"""Whatever is sent, the server answers with the client's fault, and lives on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pool, struct_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from unit.services.conftest import World
from unit.services.fakes.resources import agent, execution

from agent_runner.adapters.store.sqlite import SqliteDatabase, SqliteEventLog, SqliteResourceStore
from agent_runner.controlplane._routes import Routes
from agent_runner.controlplane.server import ControlPlane
from agent_runner.controlplane.server_info import ServerController
from agent_runner.domain.kinds import API_VERSION, KINDS
from agent_runner.services._batches import varint
from agent_runner.services.container import Services
from agent_runner.v1.events_pb2 import ExecutionEvent, ToolCallStarted
from agent_runner.v1.runner_service_pb2 import AppendEventsRequest, StartAttemptRequest
from ai.stigmer.agentic.agent.v1.io_pb2 import AgentId

ROUNDS = 40
FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}

HOSTILE = (
    "",
    " ",
    "\x00",
    "a\x00b",
    "../../etc/passwd",
    "' OR 1=1 --",
    "\U0001f600" * 50,
    "‮override",
    "x" * 10_000,
    "{{SECRET}}",
    "agt-01",
    "-1",
    "%s%n",
    "\r\nauthorization: x",
)
NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31))
LARGE_NUMBERS = (*NUMBERS, 2**63 - 1, -(2**63))


class Maker:
    """Makes messages of any type, now and then with what is really there."""

    def __init__(self, seed: int, known: Sequence[str]) -> None:
        self._random = random.Random(seed)
        self._known = tuple(known)

    def message(self, of: type[Message], depth: int = 0) -> Message:
        made = of()
        for field in made.DESCRIPTOR.fields:
            if self._random.random() < (0.75 if depth < 2 else 0.35) and depth < 6:
                self._fill(made, field, depth)
        if depth == 0 and self._random.random() < 0.7:
            self._make_plausible(made)
        return made

    def _fill(self, made: Any, field: FieldDescriptor, depth: int) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name
            for _ in range(self._random.randint(1, 3)):
                key = self._scalar(entry["key"])
                if entry["value"].message_type is None:
                    getattr(made, field.name)[key] = self._scalar(entry["value"])
                else:
                    value = self.message(GetMessageClass(entry["value"].message_type), depth + 1)
                    getattr(made, field.name)[key].CopyFrom(value)
        elif field.is_repeated:
            for _ in range(self._random.randint(1, 3)):
                getattr(made, field.name).append(self._value(field, depth))
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(self._value(field, depth))
        else:
            setattr(made, field.name, self._value(field, depth))

    def _value(self, field: FieldDescriptor, depth: int) -> Any:
        if field.message_type is not None:
            return self.message(GetMessageClass(field.message_type), depth + 1)
        return self._scalar(field)

    def _scalar(self, field: FieldDescriptor) -> Any:
        pick = self._random.choice
        if field.enum_type is not None:
            return pick([*(value.number for value in field.enum_type.values), 99, -7])
        kinds: dict[int, Sequence[Any]] = {
            FieldDescriptor.CPPTYPE_STRING: (*HOSTILE, *self._known * 3),
            FieldDescriptor.CPPTYPE_BOOL: (True, False),
            FieldDescriptor.CPPTYPE_INT32: NUMBERS,
            FieldDescriptor.CPPTYPE_UINT32: (0, 1, 2**32 - 1),
            FieldDescriptor.CPPTYPE_INT64: LARGE_NUMBERS,
            FieldDescriptor.CPPTYPE_UINT64: (0, 1, 2**64 - 1),
            FieldDescriptor.CPPTYPE_DOUBLE: (0.0, -1.5, float("nan"), float("inf")),
            FieldDescriptor.CPPTYPE_FLOAT: (0.0, float("nan")),
        }
        value = pick(kinds[field.cpp_type])
        return value.encode() if field.type == FieldDescriptor.TYPE_BYTES else value

    def _make_plausible(self, made: Any) -> None:
        """Let some requests pass the first checks, so that the later ones are tried as well."""
        spec = next((s for s in KINDS if s.message is type(made)), None)
        if spec is None:
            return
        made.api_version, made.kind = API_VERSION, spec.kind
        made.metadata.owner_scope = 0 if spec.name in ("agent_execution", "execution_context") else 2
        made.metadata.name = f"name {self._random.random()}"
        if self._random.random() < 0.7:
            made.metadata.id = made.metadata.slug = ""
        if spec.name == "agent":
            del made.spec.skill_refs[:]
            del made.spec.sub_agents[:]
            del made.spec.mcp_servers[:]
            made.spec.instructions = "long enough to pass"


@pytest.fixture(params=["memory", "sqlite"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        world = World()
        if request.param == "sqlite":
            database = await stack.enter_async_context(
                SqliteDatabase(tmp_path / "store.db", synchronous="NORMAL")
            )
            world.store, world.log = SqliteResourceStore(database), SqliteEventLog(database)  # type: ignore[assignment]
        yield world


def methods_of(world: World) -> list[MethodDescriptor]:
    """Every method the server has, but those whose request is a stream."""
    services = world.process()
    routes = Routes(services, ServerController(services, "1", ""), timedelta(seconds=1))
    pool = descriptor_pool.Default()
    found = [pool.FindServiceByName(name) for name in routes.names]
    return [m for s in found for m in s.methods if not m.client_streaming]


async def call(channel: grpc.aio.Channel, method: MethodDescriptor, request: bytes) -> grpc.StatusCode:
    name = f"/{method.containing_service.full_name}/{method.name}"
    try:
        async with asyncio.timeout(120):  # deleting a session gives its runs five seconds to end
            if not method.server_streaming:
                unary: Any = channel.unary_unary(name)
                await unary(request)
                return grpc.StatusCode.OK
            stream: Any = channel.unary_stream(name)
            call = stream(request)
            try:
                async with asyncio.timeout(0.05):
                    await call.read()
            except TimeoutError:
                pass
            call.cancel()
            return grpc.StatusCode.OK
    except grpc.aio.AioRpcError as error:
        return error.code()
    except TimeoutError:
        raise AssertionError(f"{method.full_name} does not answer {request!r}") from None


@asynccontextmanager
async def serving(services: Services) -> AsyncIterator[str]:
    """The address of a server, stopped whatever the test says: gRPC must not end on a later one's loop."""
    server = ControlPlane(services, address="127.0.0.1:0", api_key=None, version="1")
    try:
        yield f"127.0.0.1:{await server.start()}"
    finally:
        await server.stop(0)


async def test_no_message_brings_the_server_down(world: World) -> None:
    services = world.process()
    async with serving(services) as address, grpc.aio.insecure_channel(address) as channel:
        helper = await services.agents.create(agent())
        run = await services.executions.create(execution(agent_id=helper.metadata.id))
        known = (
            helper.metadata.id,
            helper.status.default_instance_id,
            helper.metadata.slug,
            run.metadata.id,
            run.spec.session_id,
            "acme",
        )
        faults: list[str] = []
        passed = 0
        for number, method in enumerate(methods_of(world)):
            maker = Maker(number, known)
            for turn in range(ROUNDS):
                request = maker.message(GetMessageClass(method.input_type)).SerializeToString()
                if turn % 10 == 9:
                    request = request[: len(request) // 2] + b"\xff\x80"
                code = await call(channel, method, request)
                passed += code is grpc.StatusCode.OK
                if code in FAULTS:
                    faults.append(f"{method.full_name} answered {code.name} to {request[:200]!r}")
        assert not faults, "\n".join(faults[:10])
        assert passed > 100, "too little gets past the first checks"
        again = await services.agents.create(agent("After all that"))
        assert await services.agents.get(AgentId(value=again.metadata.id).value) == again
        await services.reconciler.reconcile()


async def test_deep_structures_are_refused_and_wide_ones_taken(world: World) -> None:

    services = world.process()
    async with serving(services) as address, grpc.aio.insecure_channel(address) as channel:
        helper = await services.agents.create(agent())
        run = await services.executions.create(execution(agent_id=helper.metadata.id))
        granted = await services.events.start_attempt(StartAttemptRequest(execution_id=run.metadata.id))
        method = descriptor_pool.Default().FindMethodByName("agent_runner.v1.RunnerService.AppendEvents")

        def request(args: struct_pb2.Struct) -> bytes:
            event = ExecutionEvent(tool_call_started=ToolCallStarted(tool_call_id="c", name="t", args=args))
            return AppendEventsRequest(
                execution_id=run.metadata.id, attempt=granted.attempt, events=[event]
            ).SerializeToString()

        wide = struct_pb2.Struct()
        wide.update({f"key{i}": ["x" * 100] * 10 for i in range(500)})
        nested = b""
        for _ in range(3_000):  # Value { struct_value { fields { "" : Value … } } }
            nested = _field(5, _field(1, _field(1, b"") + _field(2, nested)))
        args = _field(1, _field(1, b"") + _field(2, nested))
        deep = request(struct_pb2.Struct()) + _field(4, _field(15, _field(3, args)))
        assert await call(channel, method, request(wide)) is grpc.StatusCode.OK
        assert await call(channel, method, deep) is grpc.StatusCode.INVALID_ARGUMENT


def _field(number: int, content: bytes) -> bytes:

    return varint(number << 3 | 2) + varint(len(content)) + content
