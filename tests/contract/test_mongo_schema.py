"""A database of an earlier release is brought up to date when it is opened."""

from __future__ import annotations

import uuid
from dataclasses import replace

from contract.servers import mongo_database, wanted

from agent_runner.ports.stores import ResourceKey, StoredResource

wanted("pymongo")

from agent_runner.adapters.store.mongo import MongoResourceStore  # noqa: E402
from agent_runner.adapters.store.mongo_database import SCHEMA_VERSION, MongoDatabase  # noqa: E402


async def add(store: MongoResourceStore, id_: str, *, kind: str = "agent_execution", **fields: str) -> None:
    await store.put(StoredResource(ResourceKey(kind, id_), "", "", b"body", fields=fields), expected=0)


async def make_old(database: MongoDatabase) -> None:
    """As the first schema has it: no field `open`."""
    await database._schema.update_one({"_id": "version"}, {"$set": {"version": 1}})


async def test_what_had_not_ended_under_the_first_schema_is_in_the_queue_of_its_session(
    mongo_url: str,
) -> None:
    url = f"{mongo_url}/test_{uuid.uuid4().hex}"
    async with mongo_database(url) as database:
        store = MongoResourceStore(database)
        await add(store, "aex-1", session_id="ses-1", phase="EXECUTION_COMPLETED")
        await add(store, "aex-2", session_id="ses-1", phase="EXECUTION_IN_PROGRESS")
        await add(store, "aex-3", session_id="ses-1", phase="EXECUTION_PENDING")
        await add(store, "aex-4", phase="EXECUTION_PENDING")
        await add(store, "ses-1", kind="session", phase="EXECUTION_PENDING")
        await make_old(database)

    for _ in range(2):  # a second time, as after a crash before the version was written
        async with mongo_database(url) as database:
            assert await database.check() == SCHEMA_VERSION
            store = MongoResourceStore(database)
            for session, queue in (("ses-1", ["aex-2", "aex-3"]), ("", ["aex-4"])):
                listed = await store.list("agent_execution", fields={"open": session}, oldest_first=True)
                assert [resource.key.id for resource in listed] == queue
            assert await store.values("agent_execution", "open") == ["", "ses-1"]
            assert await store.values("session", "open") == []
            kept = await store.get(ResourceKey("agent_execution", "aex-3"))
            assert (kept.version, kept.body) == (1, b"body")
            await make_old(database)


async def test_what_ended_while_the_schema_was_changed_is_not_put_back(mongo_url: str) -> None:
    url = f"{mongo_url}/test_{uuid.uuid4().hex}"
    async with mongo_database(url) as database:
        store = MongoResourceStore(database)
        await add(store, "aex-1", session_id="ses-1", phase="EXECUTION_PENDING")
        stored = await store.get(ResourceKey("agent_execution", "aex-1"))
        update = database.resources.bulk_write

        async def after_its_end(*args: object, **more: object) -> object:
            ended = replace(stored, fields={"session_id": "ses-1", "phase": "EXECUTION_COMPLETED"})
            await store.put(ended, expected=stored.version)
            return await update(*args, **more)  # type: ignore[arg-type]

        database.resources.bulk_write = after_its_end  # type: ignore[method-assign, assignment]
        await database._mark_open()

        assert await store.values("agent_execution", "open") == []
