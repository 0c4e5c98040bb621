"""What every ResourceStore keeps."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from contract.servers import mongo_database

from agent_runner.adapters.store.memory import MemoryResourceStore
from agent_runner.adapters.store.sqlite import SqliteDatabase, SqliteResourceStore
from agent_runner.errors import AlreadyExistsError, ConflictError, NotFoundError
from agent_runner.ports.stores import ResourceKey, ResourceStore, StoredResource


@asynccontextmanager
async def memory(request: pytest.FixtureRequest) -> AsyncIterator[ResourceStore]:
    yield MemoryResourceStore()


@asynccontextmanager
async def sqlite(request: pytest.FixtureRequest) -> AsyncIterator[ResourceStore]:
    folder: Path = request.getfixturevalue("tmp_path")
    async with SqliteDatabase(folder / "store.db") as database:
        yield SqliteResourceStore(database)


@asynccontextmanager
async def mongo(request: pytest.FixtureRequest) -> AsyncIterator[ResourceStore]:
    url = request.getfixturevalue("mongo_url")
    from agent_runner.adapters.store.mongo import MongoResourceStore

    async with mongo_database(f"{url}/test_{uuid.uuid4().hex}") as database:
        yield MongoResourceStore(database)


STORES: dict[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[ResourceStore]]] = {
    "memory": memory,
    "sqlite": sqlite,
    "mongo": mongo,
}


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[ResourceStore]:
    async with STORES[request.param](request) as opened:
        yield opened


def resource(
    id_: str = "agt-1", *, kind: str = "agent", org: str = "acme", slug: str = "", **fields: str
) -> StoredResource:
    return StoredResource(ResourceKey(kind, id_), org, slug, f"body of {id_}".encode(), fields=fields)


async def ids(listed: object) -> list[str]:
    return [r.key.id for r in await listed]  # type: ignore[attr-defined]


async def test_what_was_put_is_read_back(store: ResourceStore) -> None:
    given = resource(slug="helper", phase="PENDING", session_id="ses-1")

    assert await store.put(given, expected=0) == 1
    assert await store.get(given.key) == replace(given, version=1)


async def test_an_unknown_id_is_not_found(store: ResourceStore) -> None:
    with pytest.raises(NotFoundError, match="agt-9"):
        await store.get(ResourceKey("agent", "agt-9"))


async def test_a_write_based_on_an_old_version_changes_nothing(store: ResourceStore) -> None:
    first = resource()
    version = await store.put(first, expected=0)
    second = replace(first, body=b"second")
    await store.put(second, expected=version)

    with pytest.raises(ConflictError, match="Read it again"):
        await store.put(replace(first, body=b"late"), expected=version)
    assert await store.get(first.key) == replace(second, version=2)


async def test_a_change_to_what_is_not_there_conflicts(store: ResourceStore) -> None:
    with pytest.raises(ConflictError):
        await store.put(resource(), expected=3)


async def test_creating_an_id_twice_is_refused(store: ResourceStore) -> None:
    await store.put(resource(), expected=0)

    with pytest.raises(AlreadyExistsError, match="agt-1"):
        await store.put(replace(resource(), body=b"again"), expected=0)
    assert (await store.get(resource().key)).body == b"body of agt-1"


async def test_a_slug_is_unique_within_kind_and_org(store: ResourceStore) -> None:
    await store.put(resource("agt-1", slug="helper"), expected=0)

    with pytest.raises(AlreadyExistsError, match="helper"):
        await store.put(resource("agt-2", slug="helper"), expected=0)
    await store.put(resource("agt-3", slug="helper", org="other"), expected=0)
    await store.put(resource("env-1", slug="helper", kind="environment"), expected=0)
    with pytest.raises(NotFoundError):
        await store.get(ResourceKey("agent", "agt-2"))


async def test_a_change_of_slug_frees_the_old_one_and_respects_others(store: ResourceStore) -> None:
    await store.put(resource("agt-1", slug="one"), expected=0)
    await store.put(resource("agt-2", slug="two"), expected=0)

    with pytest.raises(AlreadyExistsError, match="two"):
        await store.put(resource("agt-1", slug="two"), expected=1)
    await store.put(resource("agt-1", slug="three"), expected=1)
    await store.put(resource("agt-4", slug="one"), expected=0)
    found = await store.find("agent", "acme", "one")
    assert found is not None and found.key.id == "agt-4"


async def test_empty_slugs_may_repeat_and_name_nothing(store: ResourceStore) -> None:
    await store.put(resource("agt-1"), expected=0)
    await store.put(resource("agt-2"), expected=0)
    await store.put(replace(resource("agt-2"), body=b"x"), expected=1)

    assert await store.find("agent", "acme", "") is None
    assert await ids(store.list("agent")) == ["agt-2", "agt-1"]


async def test_find_looks_in_one_org_or_takes_the_oldest_of_all(store: ResourceStore) -> None:
    await store.put(resource("agt-2", slug="helper", org="b"), expected=0)
    await store.put(resource("agt-1", slug="helper", org="c"), expected=0)

    found = await store.find("agent", "b", "helper")
    assert found is not None and found.key.id == "agt-2"
    oldest = await store.find("agent", None, "helper")
    assert oldest is not None and oldest.key.id == "agt-1"
    assert await store.find("agent", "a", "helper") is None
    assert await store.find("agent", None, "nobody") is None


async def test_what_was_deleted_is_returned_and_its_slug_is_free(store: ResourceStore) -> None:
    given = resource(slug="helper", phase="PENDING")
    await store.put(given, expected=0)

    assert await store.delete(given.key) == replace(given, version=1)
    with pytest.raises(NotFoundError):
        await store.delete(given.key)
    assert await store.find("agent", "acme", "helper") is None
    assert await store.list("agent", fields={"phase": "PENDING"}) == []
    assert await store.put(given, expected=0) == 1


async def test_lists_go_from_new_to_old_page_by_page(store: ResourceStore) -> None:
    for number in (3, 1, 5, 2, 4):
        await store.put(resource(f"agt-{number}"), expected=0)
    await store.put(resource("env-1", kind="environment"), expected=0)

    assert await ids(store.list("agent", limit=2)) == ["agt-5", "agt-4"]
    assert await ids(store.list("agent", limit=2, before="agt-4")) == ["agt-3", "agt-2"]
    assert await ids(store.list("agent", limit=2, before="agt-2")) == ["agt-1"]
    assert await ids(store.list("agent", limit=0)) == []


async def test_lists_go_from_old_to_new_page_by_page(store: ResourceStore) -> None:
    for number in (3, 1, 5, 2, 4):
        await store.put(resource(f"agt-{number}"), expected=0)

    assert await ids(store.list("agent", limit=2, oldest_first=True)) == ["agt-1", "agt-2"]
    assert await ids(store.list("agent", limit=9, oldest_first=True, after="agt-3")) == ["agt-4", "agt-5"]


async def test_lists_filter_by_org_and_by_all_fields_given(store: ResourceStore) -> None:
    await store.put(resource("ex-1", session="a", phase="PENDING"), expected=0)
    await store.put(resource("ex-2", session="a", phase="COMPLETED"), expected=0)
    await store.put(resource("ex-3", session="b", phase="PENDING"), expected=0)
    await store.put(resource("ex-4", session="a", phase="PENDING", org="other"), expected=0)

    assert await ids(store.list("agent", org="acme")) == ["ex-3", "ex-2", "ex-1"]
    assert await ids(store.list("agent", fields={"session": "a"})) == ["ex-4", "ex-2", "ex-1"]
    both = {"session": "a", "phase": "PENDING"}
    assert await ids(store.list("agent", fields=both)) == ["ex-4", "ex-1"]
    assert await ids(store.list("agent", fields=both, org="acme")) == ["ex-1"]
    assert await ids(store.list("agent", fields=both, limit=1, before="ex-4")) == ["ex-1"]
    assert await ids(store.list("agent", fields=both, oldest_first=True, after="ex-1")) == ["ex-4"]
    assert await ids(store.list("agent", fields={"missing": ""})) == []


async def test_what_would_be_listed_can_be_counted(store: ResourceStore) -> None:
    await store.put(resource("ex-1", session="a", phase="PENDING"), expected=0)
    await store.put(resource("ex-2", session="a", phase="COMPLETED"), expected=0)
    await store.put(resource("ex-3", session="a", phase="PENDING", org="other"), expected=0)
    await store.put(resource("se-1", kind="session"), expected=0)

    both = {"session": "a", "phase": "PENDING"}
    assert await store.count("agent") == 3
    assert await store.count("agent", org="acme") == 2
    assert await store.count("agent", fields=both) == 2
    assert await store.count("agent", fields=both, org="other") == 1
    assert await store.count("agent", fields=both, before="ex-3") == 1
    assert await store.count("agent", before="ex-3") == 2
    assert await store.count("skill") == 0


async def test_the_values_of_a_field_are_told_once_each_and_in_order(store: ResourceStore) -> None:
    for number, session in enumerate(["b", "a", "b", "", "ü c"]):
        await store.put(resource(f"ex-{number}", session=session, phase="a value of another"), expected=0)
    await store.put(resource("ex-8", phase="PENDING"), expected=0)
    await store.put(resource("se-9", kind="session", session="of another kind"), expected=0)

    assert list(await store.values("agent", "session")) == ["", "a", "b", "ü c"]
    await store.put(resource("ex-1", session="d"), expected=1)
    await store.delete(ResourceKey("agent", "ex-3"))
    assert list(await store.values("agent", "session")) == ["b", "d", "ü c"]
    assert list(await store.values("agent", "sess")) == []


async def test_a_changed_field_is_found_by_its_new_value_only(store: ResourceStore) -> None:
    await store.put(resource("ex-1", phase="PENDING", session="a"), expected=0)
    await store.put(resource("ex-1", phase="COMPLETED"), expected=1)

    assert await ids(store.list("agent", fields={"phase": "PENDING"})) == []
    assert await ids(store.list("agent", fields={"session": "a"})) == []
    assert await ids(store.list("agent", fields={"phase": "COMPLETED"})) == ["ex-1"]


async def test_of_concurrent_writers_one_wins_and_the_others_hear_of_it(store: ResourceStore) -> None:
    await store.put(resource(), expected=0)

    async def increment() -> int:
        conflicts = 0
        while True:
            stored = await store.get(resource().key)
            body = str(int(stored.body) + 1 if stored.version > 1 else 1).encode()
            try:
                await store.put(replace(stored, body=body), expected=stored.version)
                return conflicts
            except ConflictError:
                conflicts += 1
                await asyncio.sleep(0)

    await asyncio.gather(*(increment() for _ in range(30)))
    stored = await store.get(resource().key)
    assert (int(stored.body), stored.version) == (30, 31)


async def test_a_refused_write_does_not_harm_those_beside_it(store: ResourceStore) -> None:
    await store.put(resource("agt-0", slug="taken"), expected=0)

    results = await asyncio.gather(
        *(
            store.put(resource(f"agt-{n}", slug="taken" if n % 3 == 0 else f"s{n}"), expected=0)
            for n in range(1, 31)
        ),
        return_exceptions=True,
    )

    assert [isinstance(result, AlreadyExistsError) for result in results] == [
        n % 3 == 0 for n in range(1, 31)
    ]
    assert len(await store.list("agent", limit=100)) == 21


async def test_bodies_and_names_of_any_content_are_kept(store: ResourceStore) -> None:
    body = bytes(range(256)) * 20_000
    given = StoredResource(ResourceKey("agent", "agt-1"), "", "", body, fields={"a'\"b": "ü\n' --", "e": ""})
    await store.put(given, expected=0)

    assert await store.get(given.key) == replace(given, version=1)
    assert await ids(store.list("agent", fields={"a'\"b": "ü\n' --"})) == ["agt-1"]
    assert await ids(store.list("agent", fields={"e": ""})) == ["agt-1"]
