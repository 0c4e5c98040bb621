"""Skills as the service keeps them, on every store."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hostile_archives import HOSTILE, Item, noise, skill

from agent_runner.adapters.artifacts.objects import ObjectArtifactStore
from agent_runner.adapters.store.memory import MemoryResourceStore
from agent_runner.adapters.store.sqlite import SqliteDatabase, SqliteResourceStore
from agent_runner.domain.kinds import AGENT
from agent_runner.domain.paging import PageRequest
from agent_runner.errors import (
    AgentRunnerError,
    ArtifactError,
    ConflictError,
    FailedPreconditionError,
    InvalidRequestError,
    LimitReachedError,
    NotFoundError,
)
from agent_runner.ports.stores import ResourceKey, ResourceStore, StoredResource
from agent_runner.services._clocks import IdSource, utc_now
from agent_runner.services.skills import VERSION_KIND, Push, Pushed, SkillService
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agent.v1.spec_pb2 import SubAgent
from ai.stigmer.agentic.skill.v1.api_pb2 import Skill
from ai.stigmer.commons.apiresource.enum_pb2 import ApiResourceOwnerScope
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference

PDF = Push(name="PDF tools", org="acme")


def text(version: object) -> bytes:
    return f"---\nname: pdf-tools\ndescription: Version {version}.\n---\n# PDF {version}\n".encode()


def archive(version: object, *items: Item) -> bytes:
    return skill(*items, text=text(version))


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


class Skills:
    """The service with what is below it."""

    def __init__(self, store: ResourceStore, folder: Path) -> None:
        self.store = store
        self.folder = folder / "artifacts"
        self.artifacts = ObjectArtifactStore.from_url(self.folder.as_uri())
        self.service = SkillService(store, self.artifacts, clock=utc_now, new_id=IdSource(), spool=folder)

    async def push(self, data: bytes, tag: str = "", **fields: object) -> Pushed:
        wanted = {"name": PDF.name, "org": PDF.org, "tag": tag} | fields
        return await self.service.push(Push(**wanted), pieces(data))  # type: ignore[arg-type]

    async def find(self, version: str = "", org: str = "acme", slug: str = "pdf-tools") -> Skill:
        return await self.service.get_by_reference(ApiResourceReference(org=org, slug=slug, version=version))

    async def history(self) -> list[tuple[str, str]]:
        page = await self.service.history("acme", "pdf-tools", PageRequest(100))
        return [(one.status.version_hash, one.spec.tag) for one in page.items]

    def stored_files(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())

    async def stored_rows(self) -> int:
        return sum([len(await self.store.list(kind, limit=500)) for kind in ("skill", VERSION_KIND)])


@pytest.fixture(params=["memory", "sqlite"])
async def skills(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Skills]:
    if request.param == "memory":
        yield Skills(MemoryResourceStore(), tmp_path)
        return
    async with SqliteDatabase(tmp_path / "store.db") as database:
        yield Skills(SqliteResourceStore(database), tmp_path)


async def test_a_push_stores_the_bytes_once_and_tells_the_version(skills: Skills) -> None:
    data = archive(1, Item("run.sh", b"echo hi"))
    pushed = await skills.push(data, "v1")

    made = pushed.skill
    assert made.metadata.id.startswith("skl-")
    assert (made.metadata.slug, made.metadata.org) == ("pdf-tools", "acme")
    assert made.metadata.owner_scope == ApiResourceOwnerScope.organization
    assert made.status.version_hash == hash_of(data)
    assert made.status.artifact_storage_key == f"skills/acme/pdf-tools/{hash_of(data)}.zip"
    assert made.status.size_bytes == len(data)
    assert made.status.file_count == 2
    assert made.spec.skill_md == text(1).decode()
    assert (made.spec.tag, pushed.new_version) == ("v1", True)
    assert pushed.warnings == ()
    assert await skills.service.get(made.metadata.id) == made
    assert skills.stored_files() == [made.status.artifact_storage_key]
    assert b"".join([c async for c in skills.service.artifact(made.status.artifact_storage_key)]) == data


async def test_the_same_bytes_again_are_the_same_version(skills: Skills) -> None:
    data = archive(1)
    first = await skills.push(data, "v1")
    again = [await skills.push(data, "v1"), await skills.push(data)]

    assert [one.skill for one in again] == [first.skill] * 2
    assert [one.new_version for one in again] == [False, False]
    assert len(await skills.history()) == 1
    assert len(skills.stored_files()) == 1


async def test_the_same_bytes_again_are_neither_sent_nor_read_nor_written(
    skills: Skills, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = archive(1)
    first = await skills.push(data)
    touched: list[str] = []

    async def sent() -> AsyncIterator[bytes]:
        touched.append("sent")
        yield data

    for name in ("get", "put", "delete"):
        monkeypatch.setattr(skills.artifacts, name, lambda *_, name=name: touched.append(name))
    again = await skills.service.push(Push(name=PDF.name, org="acme", hash=hash_of(data)), sent())

    assert (again.skill, again.new_version, touched) == (first.skill, False, [])


async def test_a_push_moves_the_tag_and_keeps_what_was(skills: Skills) -> None:
    one, two, three = archive(1), archive(2), archive(3)
    first = await skills.push(one, "stable")
    await skills.push(two, "stable")
    last = await skills.push(three, "next")

    assert await skills.history() == [
        (hash_of(three), "next"),
        (hash_of(two), "stable"),
        (hash_of(one), "stable"),
    ]
    assert (await skills.find()).status.version_hash == hash_of(three)
    assert (await skills.find("latest")).status.version_hash == hash_of(three)
    assert (await skills.find("next")).status.version_hash == hash_of(three)
    assert (await skills.find("stable")).status.version_hash == hash_of(two)
    assert (await skills.find(hash_of(one))).spec.skill_md == text(1).decode()
    assert last.skill.metadata.id == first.skill.metadata.id
    made = first.skill.status.audit.spec_audit.created_at
    assert last.skill.status.audit.spec_audit.created_at == made
    with pytest.raises(NotFoundError, match="pdf-tools:v9"):
        await skills.find("v9")
    with pytest.raises(NotFoundError, match="unknown:v1"):
        await skills.find("v1", slug="unknown")


async def test_a_tag_alone_can_be_moved(skills: Skills) -> None:
    one, two = archive(1), archive(2)
    await skills.push(one, "v1")
    await skills.push(two, "v2")
    moved = await skills.push(two, "stable")

    assert (moved.skill.spec.tag, moved.new_version) == ("stable", False)
    assert (await skills.find("v2")).status.version_hash == hash_of(two)
    back = await skills.push(one, "stable")
    assert (back.new_version, (await skills.find("stable")).status.version_hash) == (False, hash_of(one))
    assert (await skills.find()).status.version_hash == hash_of(one)


async def test_labels_stay_over_a_push(skills: Skills) -> None:
    made = (await skills.push(archive(1))).skill
    made.metadata.labels["team"] = "docs"
    stored = await skills.store.get(ResourceKey("skill", made.metadata.id))
    body = StoredResource(stored.key, stored.org, stored.slug, made.SerializeToString(), fields=stored.fields)
    await skills.store.put(body, expected=stored.version)

    after = (await skills.push(archive(2), scope=int(ApiResourceOwnerScope.platform))).skill
    assert after.metadata.labels == {"team": "docs"}
    assert after.metadata.owner_scope == ApiResourceOwnerScope.platform


async def test_organizations_have_skills_of_the_same_name(skills: Skills) -> None:
    await skills.push(archive("acme"))
    await skills.push(archive("other"), org="other")
    await skills.push(archive("nobody"), org="")

    assert "# PDF acme" in (await skills.find(org="acme")).spec.skill_md
    assert "# PDF other" in (await skills.find(org="other")).spec.skill_md
    assert len(skills.stored_files()) == 3
    with pytest.raises(NotFoundError, match="nobody-else"):
        await skills.find(org="nobody-else")


async def test_a_name_in_the_front_matter_that_is_another_one_is_told(skills: Skills) -> None:
    told = await skills.push(archive(1), name="other")
    assert told.warnings == ("The front matter calls the skill 'pdf-tools', but it is pushed as 'other'.",)


async def test_two_pushes_at_once_both_count_and_one_is_current(skills: Skills) -> None:
    await skills.push(archive(0), "v0")
    other = SkillService(
        skills.store, skills.artifacts, clock=utc_now, new_id=IdSource(), spool=skills.folder.parent
    )
    versions = [archive(i) for i in range(1, 13)]
    pushes = [
        (skills.service if i % 2 else other).push(Push(name=PDF.name, org="acme", tag=f"v{i}"), pieces(data))
        for i, data in enumerate(versions, 1)
    ]
    await asyncio.gather(*pushes)

    history = await skills.history()
    assert sorted(tag for _, tag in history) == sorted(f"v{i}" for i in range(13))
    assert history[0][0] == (await skills.find()).status.version_hash
    for i, data in enumerate(versions, 1):
        assert (await skills.find(f"v{i}")).status.version_hash == hash_of(data)


async def test_the_first_two_pushes_at_once_make_one_skill(skills: Skills) -> None:
    other = SkillService(
        skills.store, skills.artifacts, clock=utc_now, new_id=IdSource(), spool=skills.folder.parent
    )
    made = await asyncio.gather(
        *(s.push(PDF, pieces(archive(i))) for i, s in enumerate([skills.service, other]))
    )
    assert len({one.skill.metadata.id for one in made}) == 1
    assert len(await skills.history()) == 2


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_refused_archive_leaves_nothing(name: str, tmp_path: Path) -> None:
    skills = Skills(MemoryResourceStore(), tmp_path)
    build, message = HOSTILE[name]
    with pytest.raises(InvalidRequestError, match=message) as refused:
        await skills.service.push(PDF, pieces(build(), 1 << 16))
    assert [violation.field for violation in refused.value.violations] == ["artifact"]
    assert (skills.stored_files(), await skills.stored_rows()) == ([], 0)
    assert left_in(tmp_path) == ["artifacts"]


async def test_too_many_bytes_are_not_read_to_the_end(tmp_path: Path) -> None:
    from agent_runner.domain.archives import ArchiveLimits

    service = SkillService(
        MemoryResourceStore(),
        ObjectArtifactStore.from_url("memory:///"),
        clock=utc_now,
        new_id=IdSource(),
        limits=ArchiveLimits(compressed_bytes=10_000),
    )
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        yield b"PK\x03\x04"
        while True:
            read += 1000
            yield b"x" * 1000

    with pytest.raises(InvalidRequestError, match="more than 10000 bytes"):
        await service.push(PDF, endless())
    assert read <= 11_000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "name"),
        ({"name": "!!!"}, "name"),
        ({"name": "x" * 300}, "name"),
        ({"tag": "a b"}, "tag"),
        ({"tag": "a" * 64}, "hash of a version"),
        ({"scope": 3}, "scope"),
        ({"scope": 9}, "scope"),
        ({"hash": "b" * 64}, "have the hash"),
    ],
)
async def test_a_wrong_field_is_named(skills: Skills, fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        await skills.push(archive(1), **fields)  # type: ignore[arg-type]
    assert (skills.stored_files(), await skills.stored_rows()) == ([], 0)


async def test_a_dry_run_tells_and_stores_nothing(skills: Skills) -> None:
    told = await skills.push(archive(1), "v1", dry_run=True)
    assert (told.new_version, told.skill.status.version_hash) == (True, hash_of(archive(1)))
    assert (skills.stored_files(), await skills.stored_rows()) == ([], 0)


class Refusing(MemoryResourceStore):
    """Writes no skill."""

    async def put(self, resource: StoredResource, *, expected: int) -> int:
        raise ConflictError(resource.key.kind, resource.key.id, expected)


async def test_a_push_that_cannot_be_recorded_leaves_no_bytes(tmp_path: Path) -> None:
    skills = Skills(Refusing(), tmp_path)
    with pytest.raises(ConflictError):
        await skills.push(archive(1))
    assert skills.stored_files() == []


# -- history and rollback ---------------------------------------------------------------------------


async def test_history_comes_in_pages(skills: Skills) -> None:
    for i in range(7):
        await skills.push(archive(i), f"v{i}")
    seen: list[str] = []
    before = None
    while True:
        page = await skills.service.history("acme", "pdf-tools", PageRequest(3, before=before))
        seen += [one.spec.tag for one in page.items]
        if not page.next_token:
            break
        before = page.next_token
    assert seen == [f"v{i}" for i in reversed(range(7))]


@pytest.mark.parametrize("by", ["tag", "hash", "short"])
async def test_a_rollback_makes_an_earlier_version_current(skills: Skills, by: str) -> None:
    one = hash_of(archive(1))
    await skills.push(archive(1), "v1")
    await skills.push(archive(2), "v2")

    after = await skills.service.rollback(
        "acme", "pdf-tools", {"tag": "v1", "hash": one, "short": one[:8]}[by]
    )

    assert (after.status.version_hash, after.spec.tag) == (one, "v1")
    assert (await skills.find()) == after
    assert (await skills.find("v2")).status.version_hash == hash_of(archive(2))
    assert len(await skills.history()) == 3
    assert await skills.service.rollback("acme", after.metadata.id, one) == after, "nothing to do"
    with pytest.raises(NotFoundError, match="pdf-tools:v7"):
        await skills.service.rollback("acme", "pdf-tools", "v7")


async def test_a_rollback_can_move_a_tag(skills: Skills) -> None:
    await skills.push(archive(1), "v1")
    await skills.push(archive(2), "stable")
    after = await skills.service.rollback("acme", "pdf-tools", "v1", tag="stable")
    assert after.spec.tag == "stable"
    assert (await skills.find("stable")).status.version_hash == hash_of(archive(1))


async def test_a_rollback_to_lost_bytes_is_refused(skills: Skills) -> None:
    made = (await skills.push(archive(1), "v1")).skill
    await skills.push(archive(2))
    await skills.artifacts.delete(made.status.artifact_storage_key)
    with pytest.raises(FailedPreconditionError, match="Push them again"):
        await skills.service.rollback("acme", "pdf-tools", "v1")


# -- artifacts --------------------------------------------------------------------------------------


async def read(skills: Skills, key: str) -> bytes:
    return b"".join([chunk async for chunk in skills.service.artifact(key)])


async def test_an_altered_artifact_is_not_given_out_as_whole(skills: Skills) -> None:
    data = archive(1, Item("f", noise(5000)))
    key = (await skills.push(data)).skill.status.artifact_storage_key
    path = skills.folder / key
    path.write_bytes(data[:-1] + b"!")

    with pytest.raises(ArtifactError, match="was altered"):
        await read(skills, key)
    with pytest.raises(ArtifactError, match="was altered"):
        await skills.service.whole_artifact(key, 1 << 20)

    await skills.push(data)
    assert await read(skills, key) == data, "the same push heals it"


async def test_a_lost_artifact_is_not_found_until_it_is_pushed_again(skills: Skills) -> None:
    data = archive(1)
    key = (await skills.push(data)).skill.status.artifact_storage_key
    await skills.artifacts.delete(key)
    with pytest.raises(NotFoundError):
        await read(skills, key)
    await skills.push(data, hash=hash_of(data))
    assert await read(skills, key) == data


async def test_only_keys_of_skills_are_read(skills: Skills, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    for key in ("../secret", "skills/../../secret", "/etc/passwd", "secret", ""):
        with pytest.raises(InvalidRequestError, match="not the key of a skill"):
            await read(skills, key)


async def test_an_artifact_that_fits_into_no_message_is_refused(skills: Skills) -> None:
    key = (await skills.push(archive(1, Item("f", noise(5000))))).skill.status.artifact_storage_key
    with pytest.raises(LimitReachedError, match="GetArtifact"):
        await skills.service.whole_artifact(key, 1000)


async def test_an_artifact_under_the_references_key_is_read(skills: Skills) -> None:
    data = archive(1)
    key = f"skills/{hash_of(data)}.zip"
    await skills.artifacts.put(key, pieces(data))
    assert await read(skills, key) == data


# -- delete -----------------------------------------------------------------------------------------


async def store_agent(
    skills: Skills, slug: str, org: str = "acme", sub: bool = False, **reference: object
) -> None:
    agent = Agent()
    agent.metadata.id, agent.metadata.slug, agent.metadata.org = f"agt-{slug}", slug, org
    made = ApiResourceReference(slug="pdf-tools", **reference)  # type: ignore[arg-type]
    if sub:
        agent.spec.sub_agents.append(SubAgent(name="helper", skill_refs=[made]))
    else:
        agent.spec.skill_refs.append(made)
    stored = StoredResource(ResourceKey(AGENT.name, agent.metadata.id), org, slug, agent.SerializeToString())
    await skills.store.put(stored, expected=0)


async def test_a_skill_nobody_uses_can_be_deleted_with_all_it_was(skills: Skills) -> None:
    await skills.push(archive(1), "v1")
    made = (await skills.push(archive(2), "v2")).skill
    await skills.push(archive("other"), org="other")
    await store_agent(skills, "elsewhere", org="other")

    assert await skills.service.delete(made.metadata.id) == made

    assert len(skills.stored_files()) == 1
    assert await skills.stored_rows() == 1
    with pytest.raises(NotFoundError):
        await skills.find()
    again = (await skills.push(archive(1))).skill
    assert again.metadata.id != made.metadata.id
    assert len(await skills.history()) == 1


@pytest.mark.parametrize(
    "reference", [{}, {"org": "acme"}, {"version": "v1"}, {"scope": 1, "org": "far"}, {"sub": True}]
)
async def test_a_skill_in_use_is_deleted_only_by_force(skills: Skills, reference: dict[str, object]) -> None:
    made = (await skills.push(archive(1))).skill
    await store_agent(skills, "reader", **reference)  # type: ignore[arg-type]

    with pytest.raises(FailedPreconditionError, match="used by reader"):
        await skills.service.delete(made.metadata.id)
    assert await skills.find() == made

    assert await skills.service.remove("acme", "pdf-tools", force=True) == (made, ["reader"])
    assert (skills.stored_files(), await skills.stored_rows()) == ([], 0)


async def test_errors_are_ours(skills: Skills) -> None:
    for call in (skills.service.delete("skl-none"), skills.service.remove("acme", "none")):
        with pytest.raises(AgentRunnerError):
            await call
