"""Nothing the adapter asks MongoDB looks at more documents than those it is about."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from itertools import product
from typing import Any

import pytest
from contract.servers import mongo_database, wanted

from agent_runner.ports.stores import LogHead, ResourceKey, StoredResource
from agent_runner.services.turns import SessionTurns

wanted("pymongo")

from pymongo.monitoring import CommandListener  # noqa: E402

from agent_runner.adapters.store import mongo_database as module  # noqa: E402
from agent_runner.adapters.store.mongo import MongoEventLog, MongoResourceStore  # noqa: E402

Command = dict[str, Any]

_ASKS = {"find": "filter", "aggregate": "pipeline", "findAndModify": "query", "update": "q", "delete": "q"}


class Listener(CommandListener):
    """Keeps what looks for documents."""

    def __init__(self) -> None:
        self.commands: list[Command] = []

    def started(self, event: Any) -> None:
        if event.command_name in _ASKS:
            self.commands.append(dict(event.command))

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Listener:
    listener = Listener()
    listening = partial(module.AsyncMongoClient, event_listeners=[listener])
    monkeypatch.setattr(module, "AsyncMongoClient", listening)
    return listener


@pytest.fixture
async def database(mongo_url: str, heard: Listener) -> AsyncIterator[module.MongoDatabase]:
    async with mongo_database(f"{mongo_url}/test_{uuid.uuid4().hex}") as opened:
        await fill(opened)
        heard.commands.clear()
        yield opened


async def fill(database: module.MongoDatabase) -> None:
    """300 executions of 2 organizations and 100 sessions, and two logs of 4 batches."""
    await database.resources.insert_many(
        [
            {
                "kind": "agent_execution",
                "id": f"aex-{number:03}",
                "org": f"org-{number % 2}",
                "slug": f"slug-{number}" if number % 3 else "",
                "version": 1,
                "fields": [
                    f"session_id\0s-{number % 100}",
                    f"phase\0{number % 5}",
                    *([f"open\0s-{number % 100}"] if number > 290 else []),
                ],
                "body": b"",
            }
            for number in range(300)
        ]
    )
    log = MongoEventLog(database)
    for execution in ("ex-1", "ex-2"):
        for seq in range(0, 20, 5):
            await log.append(execution, [b"e"] * 5, expected_seq=seq, head=LogHead(seq + 5, snapshot=b"s"))


def stages(plan: Any) -> Iterator[Command]:
    """Every stage of a plan."""
    if isinstance(plan, dict):
        if "stage" in plan:
            yield plan
        for value in plan.values():
            yield from stages(value)
    elif isinstance(plan, list):
        for value in plan:
            yield from stages(value)


def asked(command: Command) -> list[Command]:
    """What the command looks for, as commands `find`: plans of those are told by every server."""
    name, collection = next(iter(command.items()))
    if name == "aggregate":
        first = command["pipeline"][0]["$match"]
        return [{"find": collection, "filter": first, "hint": command.get("hint")}]
    parts = command.get(f"{name}s", [command]) if name in ("update", "delete") else [command]
    own = ("sort", "limit", "hint")
    return [
        {"find": collection, "filter": part[_ASKS[name]], **{key: part[key] for key in own if key in part}}
        for part in parts
    ]


async def plans(
    database: module.MongoDatabase, commands: list[Command]
) -> list[tuple[Command, set[str], int]]:
    """Of each command what it looks for, the indexes it uses, and how many documents it examines."""
    found = []
    for command in [part for whole in commands for part in asked(whole)]:
        command = {key: value for key, value in command.items() if value is not None}
        told = await database.resources.database.command({"explain": command, "verbosity": "executionStats"})
        winning = list(stages(told["queryPlanner"]["winningPlan"]))
        assert not any(stage["stage"] == "COLLSCAN" for stage in winning), command
        names = {stage["indexName"] for stage in winning if "indexName" in stage}
        found.append((command, names, told["executionStats"]["totalDocsExamined"]))
    return found


@pytest.mark.parametrize(
    ("org", "session", "phase"), list(product([None, "org-1"], [None, "s-3"], [None, "3"]))
)
async def test_lists_and_counts_go_by_the_index_that_has_them_together(
    database: module.MongoDatabase, heard: Listener, org: str | None, session: str | None, phase: str | None
) -> None:
    store = MongoResourceStore(database)
    fields = {name: value for name, value in (("session_id", session), ("phase", phase)) if value}
    rows = await store.list("agent_execution", org=org, fields=fields, before="aex-250", limit=10)
    oldest = await store.list("agent_execution", org=org, fields=fields, oldest_first=True, after="aex-100")
    count = await store.count("agent_execution", org=org, fields=fields, before="aex-250")

    used = await plans(database, heard.commands)
    expected = "_".join(["kind_1", *(["org_1"] * bool(org)), *(["fields_1"] * bool(fields)), "id_1"])
    assert [names for _, names, _ in used] == [{expected}] * 3
    assert rows and oldest and count
    if session:  # which has 3 executions
        assert max(examined for _, _, examined in used) <= 3


async def test_what_has_ended_is_not_looked_at_for_the_queue_of_a_session(
    database: module.MongoDatabase, heard: Listener
) -> None:
    turns = SessionTurns(MongoResourceStore(database))
    queue = await turns.unfinished("s-93")
    await turns.waiting("s-93")
    await turns.position(queue[0])
    assert await turns.sessions() == [f"s-{number}" for number in range(91, 100)]

    assert [record.id for record in queue] == ["aex-293"]
    *of_one, of_all = [examined for _, _, examined in await plans(database, heard.commands)]
    assert max(of_one) <= 1  # of 3
    assert of_all <= 9  # of 300


USES: dict[str, Callable[[MongoResourceStore, MongoEventLog], Coroutine[Any, Any, Any]]] = {
    "get": lambda store, _: store.get(ResourceKey("agent_execution", "aex-001")),
    "find": lambda store, _: store.find("agent_execution", "org-1", "slug-1"),
    "find anywhere": lambda store, _: store.find("agent_execution", None, "slug-1"),
    "put": lambda store, _: store.put(
        StoredResource(ResourceKey("agent_execution", "aex-001"), "org-1", "slug-1", b"new"), expected=1
    ),
    "delete": lambda store, _: store.delete(ResourceKey("agent_execution", "aex-001")),
    "head": lambda _, log: log.head("ex-1"),
    "append": lambda _, log: log.append("ex-1", [b"e"], expected_seq=20, head=LogHead(21, snapshot=b"t")),
    "read": lambda _, log: log.read("ex-1", after_seq=15),
    "replace": lambda _, log: log.replace("ex-1", [(20, b"e")]),
    "forget": lambda _, log: log.delete("ex-1"),
}


@pytest.mark.parametrize("use", USES)
async def test_nothing_is_looked_for_without_an_index(
    database: module.MongoDatabase, heard: Listener, use: str
) -> None:
    await USES[use](MongoResourceStore(database), MongoEventLog(database))

    commands = list(heard.commands)
    assert commands
    for command, names, _ in await plans(database, commands):
        assert names or set(command["filter"]) == {"_id"}, command
