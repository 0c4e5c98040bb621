"""Skills from a push over gRPC to the files and the prompt of a turn."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import textwrap
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from hostile_archives import HOSTILE, Item, skill
from unit.services.fakes.workflows import MemoryWorkflows

from agent_runner.adapters.announcers.memory import MemoryAnnouncer
from agent_runner.adapters.artifacts.objects import ObjectArtifactStore
from agent_runner.adapters.skills.cache import SkillCache
from agent_runner.adapters.skills.grpc import GrpcSkillReader
from agent_runner.adapters.store.memory import MemoryEventLog, MemoryResourceStore
from agent_runner.client.channels import Channel
from agent_runner.controlplane import _uploads
from agent_runner.controlplane.server import ControlPlane
from agent_runner.errors import UnavailableError
from agent_runner.services.container import build_services
from agent_runner.services.skill_loading import LoadedSkills, SkillLoader
from agent_runner.v1 import skill_service_pb2 as ours
from agent_runner.v1.options_pb2 import SkillDisclosure
from agent_runner.v1.skill_service_pb2_grpc import SkillServiceStub
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agent.v1.spec_pb2 import SubAgent
from ai.stigmer.agentic.skill.v1 import io_pb2
from ai.stigmer.agentic.skill.v1.api_pb2 import Skill
from ai.stigmer.agentic.skill.v1.command_pb2_grpc import SkillCommandControllerStub
from ai.stigmer.agentic.skill.v1.query_pb2_grpc import SkillQueryControllerStub
from ai.stigmer.commons.apiresource.enum_pb2 import ApiResourceOwnerScope
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference


@dataclass
class Stack:
    """A control plane with a client's and a runner's side."""

    commands: Any
    queries: Any
    ours: Any
    reader: GrpcSkillReader
    folder: Path
    server: ControlPlane

    def loader(self) -> SkillLoader:
        return SkillLoader(self.reader, SkillCache(self.folder / "cache", self.reader))

    async def push(self, name: str, data: bytes, **fields: Any) -> Skill:
        request = io_pb2.PushSkillRequest(name=name, org="acme", artifact=data, **fields)
        pushed: Skill = await self.commands.push(request)
        return pushed


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    services = build_services(
        MemoryResourceStore(),
        MemoryEventLog(),
        MemoryAnnouncer(),
        MemoryWorkflows(),
        ObjectArtifactStore.from_url((tmp_path / "artifacts").as_uri()),
        spool=tmp_path,
    )
    server = ControlPlane(services, address="127.0.0.1:0", api_key=None, version="0")
    address = f"127.0.0.1:{await server.start()}"
    options = (("grpc.max_receive_message_length", 64 << 20),)
    async with grpc.aio.insecure_channel(address, options=options) as raw:
        channel = Channel(address)
        yield Stack(
            SkillCommandControllerStub(raw),
            SkillQueryControllerStub(raw),
            SkillServiceStub(raw),
            GrpcSkillReader(channel),
            tmp_path,
            server,
        )
        await channel.aclose()
    await server.stop(0)


def text(name: str, body: str = "Do it.") -> bytes:
    return f"---\nname: {name}\ndescription: About {name}.\n---\n# {name}\n{body}\n".encode()


def archive(name: str, body: str = "Do it.") -> bytes:
    return skill(Item("scripts/run.sh", f"echo {body}\n".encode()), text=text(name, body))


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def agent(*references: ApiResourceReference, **options: Any) -> Agent:
    made = Agent()
    made.metadata.org = "acme"
    made.spec.skill_refs.extend(references)
    made.spec.options.skill_disclosure = options.get("disclosure", SkillDisclosure.SKILL_DISCLOSURE_FULL)
    return made


def ref(slug: str, version: str = "", **fields: Any) -> ApiResourceReference:
    return ApiResourceReference(slug=slug, version=version, **fields)


def parts(data: bytes, size: int = 1 << 18, **header: Any) -> list[ours.PushSkillRequest]:
    head = ours.PushSkillRequest(header=ours.PushSkillHeader(**{"name": "pdf", "org": "acme"} | header))
    pieces = range(0, len(data), size)
    return [head, *(ours.PushSkillRequest(chunk=data[start : start + size]) for start in pieces)]


async def test_a_skill_reaches_the_prompt_and_the_sandbox_of_a_turn(stack: Stack) -> None:
    pdf, csv = archive("pdf"), archive("csv")
    await stack.push("pdf", pdf, tag="v1")
    await stack.push("csv", csv)
    made = agent(ref("pdf", "v1"), ref("csv"))
    made.spec.sub_agents.append(SubAgent(name="reader", skill_refs=[ref("csv", hash_of(csv))]))
    made.spec.sub_agents.append(SubAgent(name="idle"))

    async with stack.loader().load(made) as loaded:
        assert set(loaded.paths) == {hash_of(pdf), hash_of(csv)}
        script = loaded.paths[hash_of(pdf)] / "scripts" / "run.sh"
        assert (script.read_bytes(), script.stat().st_mode & 0o777) == (b"echo Do it.\n", 0o755)
        located = f"LOCATION: /bin/skills/{hash_of(pdf)}/\n\n{text('pdf').decode()}"
        assert f"### SKILL: pdf\n{located}" in loaded.sections[""]
        assert "### SKILL: csv" in loaded.sections[""]
        assert "pdf" not in loaded.sections["reader"]
        assert "idle" not in loaded.sections
        assert sorted((one.name, one.version, one.hash, one.org) for one in loaded.used) == sorted(
            [
                ("pdf", "v1", hash_of(pdf), "acme"),
                ("csv", "", hash_of(csv), "acme"),
                ("csv", hash_of(csv), hash_of(csv), "acme"),
            ]
        )
        assert not loaded.warnings


async def test_progressive_disclosure_is_the_agents_choice(stack: Stack) -> None:
    await stack.push("pdf", archive("pdf"))
    made = agent(ref("pdf"), disclosure=SkillDisclosure.SKILL_DISCLOSURE_PROGRESSIVE)
    async with stack.loader().load(made) as loaded:
        assert loaded.sections[""].endswith("/\n\nAbout pdf.\n")


async def test_a_retried_turn_keeps_its_version_while_the_tag_moves(stack: Stack) -> None:
    one, two = archive("pdf", "one"), archive("pdf", "two")
    await stack.push("pdf", one, tag="stable")
    made = agent(ref("pdf", "stable"), ref("pdf"))
    async with stack.loader().load(made) as first:
        await stack.push("pdf", two, tag="stable")
        assert (first.paths[hash_of(one)] / "SKILL.md").exists()

    async with stack.loader().load(made, pinned=first.used) as again:
        assert set(again.paths) == {hash_of(one)}
        assert list(again.used) == list(first.used)
    async with stack.loader().load(made) as new:
        assert set(new.paths) == {hash_of(two)}


async def test_what_is_missing_is_told_and_the_turn_goes_on(stack: Stack) -> None:
    lost = await stack.push("lost", archive("lost"))
    await stack.push("pdf", archive("pdf"))
    (stack.folder / "artifacts" / lost.status.artifact_storage_key).unlink()

    async with stack.loader().load(agent(ref("pdf"), ref("lost"), ref("unknown", "v7"))) as loaded:
        assert len(loaded.paths) == 1
        assert [warning.split(":")[0] for warning in loaded.warnings] == [
            "Skill unknown",
            "Skill lost has its instructions only, its files are not available",
        ]
        assert "v7" in loaded.warnings[0]
        section = loaded.sections[""]
        assert "### SKILL: lost\nThe files of this skill are not available" in section
        assert "# lost" in section


async def test_an_altered_artifact_is_told_too(stack: Stack) -> None:
    made = await stack.push("pdf", archive("pdf"))
    path = stack.folder / "artifacts" / made.status.artifact_storage_key
    path.write_bytes(archive("evil"))
    async with stack.loader().load(agent(ref("pdf"))) as loaded:
        assert not loaded.paths
        assert "altered" in loaded.warnings[0]


async def test_a_turn_waits_for_a_control_plane_that_is_away(stack: Stack) -> None:
    await stack.server.stop(0)
    with pytest.raises(UnavailableError):
        async with stack.loader().load(agent(ref("pdf"))):
            pass


async def test_a_platform_skill_of_another_organization_must_be_asked_for_as_one(stack: Stack) -> None:
    push = {"scope": ApiResourceOwnerScope.platform}
    request = io_pb2.PushSkillRequest(name="shared", org="vendor", artifact=archive("shared"), **push)
    await stack.commands.push(request)

    async def load(reference: ApiResourceReference) -> LoadedSkills:
        async with stack.loader().load(agent(reference)) as loaded:
            return loaded

    assert (await load(ref("shared"))).warnings
    assert not (await load(ref("shared", scope=ApiResourceOwnerScope.platform))).warnings
    assert not (await load(ref("shared", org="vendor"))).warnings


# -- the API ----------------------------------------------------------------------------------------


async def code_of(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code().name, raised.value.details() or ""


async def test_push_in_pieces_does_what_push_does(stack: Stack) -> None:
    data = archive("pdf")
    answer = await stack.ours.PushSkill(iter(parts(data, 100, tag="v1")))
    assert answer.new_version
    assert answer.skill.status.version_hash == hash_of(data)
    assert await stack.push("pdf", data) == answer.skill
    short = await stack.ours.PushSkill(iter(parts(b"", hash=hash_of(data))))
    assert (short.skill, short.new_version) == (answer.skill, False)


async def test_pushes_that_are_wrong_say_what_is(stack: Stack) -> None:
    header, *chunks = parts(archive("pdf"))
    cases = {
        "header: must come first": chunks,
        "header: must come once": [header, *chunks, header],
        "artifact: The archive is empty": [header],
        "artifact: This is no zip": parts(b"text"),
        "header.name": parts(archive("pdf"), name=""),
        "header.tag": parts(archive("pdf"), tag="a b"),
    }
    for message, requests in cases.items():
        code, details = await code_of(stack.ours.PushSkill(iter(requests)))
        assert (code, details[: len(message)]) == ("INVALID_ARGUMENT", message)
    assert (await code_of(stack.ours.PushSkill(iter([]))))[0] == "INVALID_ARGUMENT"


async def test_a_hostile_archive_is_refused_over_the_wire_with_its_entry(stack: Stack) -> None:
    for name in ("parent directory", "symbolic link", "bomb", "encrypted"):
        build, _ = HOSTILE[name]
        code, details = await code_of(stack.push("pdf", build()))
        assert (code, details[:10]) == ("INVALID_ARGUMENT", "artifact: "), name


async def test_a_server_with_a_key_takes_no_push_without_it(tmp_path: Path) -> None:
    services = build_services(
        MemoryResourceStore(),
        MemoryEventLog(),
        MemoryAnnouncer(),
        MemoryWorkflows(),
        ObjectArtifactStore.from_url("memory:///"),
    )
    server = ControlPlane(services, address="127.0.0.1:0", api_key="right", version="0")
    address = f"127.0.0.1:{await server.start()}"
    async with grpc.aio.insecure_channel(address) as raw:
        for metadata, code in (((), "UNAUTHENTICATED"), ((("authorization", "Bearer right"),), "")):
            call = SkillServiceStub(raw).PushSkill(iter(parts(archive("pdf"))), metadata=metadata)
            if code:
                assert (await code_of(call))[0] == code
            else:
                assert (await call).new_version
    await server.stop(0)


async def test_a_push_that_pauses_is_ended(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_uploads, "_LONGEST_PAUSE", timedelta(milliseconds=50))
    never = asyncio.Event()

    async def paused() -> AsyncIterator[ours.PushSkillRequest]:
        for part in parts(archive("pdf"), 100)[:3]:
            yield part
        await never.wait()

    assert (await code_of(stack.ours.PushSkill(paused())))[0] == "UNAVAILABLE"
    assert not [path for path in stack.folder.iterdir() if path.name.startswith("skill-")]


async def test_artifacts_are_read_whole_and_in_pieces(stack: Stack) -> None:
    data = archive("pdf")
    key = (await stack.push("pdf", data)).status.artifact_storage_key
    whole = await stack.queries.getArtifact(io_pb2.GetArtifactRequest(artifact_storage_key=key))
    assert whole.artifact == data
    request = ours.GetArtifactRequest(artifact_storage_key=key)
    assert b"".join([answer.chunk async for answer in stack.ours.GetArtifact(request)]) == data


@pytest.mark.parametrize(
    "key", ["../../etc/passwd", "skills/../x", "/etc/passwd", "skills/x.zip", "store.db"]
)
async def test_get_artifact_never_leaves_the_store(stack: Stack, key: str) -> None:
    call = stack.queries.getArtifact(io_pb2.GetArtifactRequest(artifact_storage_key=key))
    assert (await code_of(call))[0] == "INVALID_ARGUMENT"
    missing = io_pb2.GetArtifactRequest(artifact_storage_key=f"skills/acme/pdf/{'0' * 64}.zip")
    assert (await code_of(stack.queries.getArtifact(missing)))[0] == "NOT_FOUND"


async def test_versions_are_listed_rolled_back_and_deleted(stack: Stack) -> None:
    for i in range(3):
        await stack.push("pdf", archive("pdf", str(i)), tag=f"v{i}")
    listed = await stack.ours.ListSkillVersions(ours.ListSkillVersionsRequest(org="acme", skill="pdf"))
    assert [(one.tag, one.current) for one in listed.versions] == [("v2", True), ("v1", False), ("v0", False)]
    assert all(one.size_bytes and one.time.endswith("Z") for one in listed.versions)

    rollback = ours.RollbackSkillRequest(org="acme", skill="pdf", version="v0")
    assert (await stack.ours.RollbackSkill(rollback)).skill.spec.tag == "v0"
    current = await stack.queries.getByReference(ref("pdf", org="acme"))
    assert current.spec.tag == "v0"

    gone = await stack.ours.DeleteSkill(ours.DeleteSkillRequest(org="acme", skill="pdf"))
    assert gone.skill == current
    assert (await code_of(stack.queries.get(io_pb2.SkillId(value=current.metadata.id))))[0] == "NOT_FOUND"


async def test_artifacts_of_a_server_of_the_stigmer_api_alone_are_read(tmp_path: Path) -> None:
    data = archive("pdf")
    server = grpc.aio.server()

    async def get_artifact(_request: bytes, _context: Any) -> bytes:
        return io_pb2.GetArtifactResponse(artifact=data).SerializeToString()

    service = "ai.stigmer.agentic.skill.v1.SkillQueryController"
    handler = grpc.unary_unary_rpc_method_handler(get_artifact)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"getArtifact": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = Channel(f"127.0.0.1:{port}")
    chunks = [chunk async for chunk in GrpcSkillReader(channel).artifact(f"skills/{hash_of(data)}.zip")]
    await channel.aclose()
    await server.stop(0)
    assert b"".join(chunks) == data


# -- size -------------------------------------------------------------------------------------------

LARGE = 90 << 20

SERVER = """
    import asyncio, json, sys, structlog
    from pathlib import Path
    sys.path[:0] = json.loads(sys.argv[2])
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    from agent_runner.adapters.announcers.memory import MemoryAnnouncer
    from agent_runner.adapters.artifacts.objects import ObjectArtifactStore
    from agent_runner.adapters.store.memory import MemoryEventLog, MemoryResourceStore
    from agent_runner.controlplane.server import ControlPlane
    from agent_runner.services.container import build_services
    from unit.services.fakes.workflows import MemoryWorkflows

    async def main():
        folder = Path(sys.argv[1])
        artifacts = ObjectArtifactStore.from_url((folder / "artifacts").as_uri())
        stores = (MemoryResourceStore(), MemoryEventLog(), MemoryAnnouncer(), MemoryWorkflows())
        services = build_services(*stores, artifacts, spool=folder)
        server = ControlPlane(services, address="127.0.0.1:0", api_key=None, version="0")
        print(await server.start(), flush=True)
        # Not ru_maxrss: that of a new process begins with the peak of the one it came from.
        peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(peak(), flush=True)
        await server.stop(0)

    asyncio.run(main())
"""

RUNNER = """
    import asyncio, json, sys, structlog
    from pathlib import Path
    sys.path[:0] = json.loads(sys.argv[2])
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    from agent_runner.adapters.skills.cache import SkillCache
    from agent_runner.adapters.skills.grpc import GrpcSkillReader
    from agent_runner.client.channels import Channel
    from agent_runner.services.skill_loading import SkillLoader
    from ai.stigmer.agentic.agent.v1.api_pb2 import Agent

    async def main():
        channel = Channel(sys.argv[3])
        reader = GrpcSkillReader(channel)
        loader = SkillLoader(reader, SkillCache(Path(sys.argv[1]) / "cache", reader))
        # Not ru_maxrss: that of a new process begins with the peak of the one it came from.
        peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
        grown = []
        for slug in ("small", "pdf"):
            agent = Agent()
            agent.metadata.org = "acme"
            agent.spec.skill_refs.add(slug=slug)
            async with loader.load(agent) as loaded:
                assert len(loaded.paths) == 1, loaded.warnings
                size = sum(f.stat().st_size for p in loaded.paths.values() for f in p.rglob("*"))
            grown.append(peak())
        print(json.dumps([grown[1] - grown[0], size]))
        await channel.aclose()

    asyncio.run(main())
"""


async def start(script: str, *arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-c", textwrap.dedent(script), *arguments)
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)


async def test_90_mib_are_pushed_and_used_with_little_memory(tmp_path: Path) -> None:
    """The least of up to three: what allocators keep, and what the kernel queues, differs by run."""
    for i in range(3):
        folder = tmp_path / str(i)
        folder.mkdir()
        grown = await grown_by_large_skill(str(folder))
        if max(grown) < 32:
            return
    raise AssertionError(f"control plane +{grown[0]} MiB, runner +{grown[1]} MiB")


async def grown_by_large_skill(folder: str) -> tuple[int, int]:
    """MiB by which control plane and runner grow, each in a process of its own."""
    paths = json.dumps(sys.path)
    server = await start(SERVER, folder, paths)
    assert server.stdin is not None and server.stdout is not None
    address = f"127.0.0.1:{int(await server.stdout.readline())}"

    async def peak() -> int:
        server.stdin.write(b"\n")  # type: ignore[union-attr]
        return int(await server.stdout.readline())  # type: ignore[union-attr]

    piece = bytes(range(256)) * 4096
    large = skill(*(Item(f"f{i}", piece, deflate=False) for i in range(LARGE >> 20)))
    async with grpc.aio.insecure_channel(address) as raw:
        service = SkillServiceStub(raw)
        await service.PushSkill(iter(parts(archive("small"), name="small")))
        before = await peak()
        pushed = await service.PushSkill(iter(parts(large)))
    assert pushed.skill.status.size_bytes > LARGE
    runner = await start(RUNNER, folder, paths, address)
    answer, _ = await runner.communicate()
    after = await peak()
    server.stdin.close()
    assert (await server.wait(), runner.returncode) == (0, 0)

    grown, size = json.loads(answer)
    assert size > LARGE
    return after - before, grown
