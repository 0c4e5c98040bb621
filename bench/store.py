"""Measures the embedded stores: durable writes, reads, and what checkpoints cost a turn.

    python bench/store.py [--json] [--writers 50] [--updates 400] [--turns 100] [--folder DIR]

Durable means `synchronous=FULL`: one fsync per commit, shared by all who write at that moment. The
floor beside it is the same insert committed alone, without a thread. Rates depend on the disk's fsync
and on what else the machine does: compare lines of one run with each other.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw

from agent_runner.adapters.checkpoints.sqlite import SqliteCheckpoints
from agent_runner.adapters.store.sqlite import SqliteDatabase, SqliteEventLog, SqliteResourceStore
from agent_runner.ports.stores import LogHead, ResourceKey, StoredResource

Result = dict[str, Any]

EVENT = b"e" * 1000
SNAPSHOT = b"s" * 4000


class Clock:
    """Wall and CPU time of a piece of work, and the latency of each operation in it."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    async def timed(self, work: Awaitable[object]) -> None:
        began = time.perf_counter()
        await work
        self.latencies.append(time.perf_counter() - began)

    def result(self, name: str, operations: int) -> Result:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        cuts = statistics.quantiles(self.latencies or [0.0, 0.0], n=20)
        return {
            "name": name,
            "per_second": round(operations / wall),
            "p50_ms": round(cuts[9] * 1e3, 3),
            "p95_ms": round(cuts[18] * 1e3, 3),
            "cpu_us": round(cpu / operations * 1e6, 1),
        }


def commit_floor(folder: Path, updates: int) -> Result:
    """An insert of 1 kB, committed by itself, with nothing around it."""
    connection = apsw.Connection(str(folder / "floor.db"))
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "FULL")
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)")
    clock = Clock()
    for _ in range(updates):
        began = time.perf_counter()
        connection.execute("INSERT INTO t (body) VALUES (?)", (EVENT,))
        clock.latencies.append(time.perf_counter() - began)
    connection.close()
    return clock.result("floor: insert 1 kB and commit alone", updates)


async def append(folder: Path, writers: int, updates: int) -> Result:
    """Every writer appends to a log of its own, one event of 1 kB at a time."""
    async with SqliteDatabase(folder / f"append{writers}.db") as database:
        log, clock = SqliteEventLog(database), Clock()

        async def write(name: str) -> None:
            for seq in range(updates):
                head = LogHead(seq + 1, 1, seq + 1, 0, SNAPSHOT)
                await clock.timed(log.append(name, [EVENT], expected_seq=seq, head=head))

        await asyncio.gather(*(write(f"ex-{number}") for number in range(writers)))
        return clock.result(f"append 1 kB, {writers} at once", writers * updates)


async def put(folder: Path, writers: int, updates: int) -> Result:
    """Every writer changes a resource of its own by compare-and-set."""
    async with SqliteDatabase(folder / f"put{writers}.db") as database:
        store, clock = SqliteResourceStore(database), Clock()

        async def write(name: str) -> None:
            for version in range(updates):
                fields = {"phase": str(version // 5), "session_id": "ses-1"}
                resource = StoredResource(
                    ResourceKey("agent_execution", name), "acme", "", EVENT, fields=fields
                )
                await clock.timed(store.put(resource, expected=version))

        await asyncio.gather(*(write(f"ex-{number}") for number in range(writers)))
        return clock.result(f"compare-and-set 1 kB, {writers} at once", writers * updates)


async def reads(folder: Path, count: int) -> list[Result]:
    """Reads one after the other, from a store of 1,000 resources and a log of 1,000 events."""
    async with SqliteDatabase(folder / "reads.db") as database:
        store, log = SqliteResourceStore(database), SqliteEventLog(database)
        resources = [
            StoredResource(
                ResourceKey("agent", f"agt-{n:04}"), "acme", f"a{n}", EVENT, fields={"even": str(n % 2)}
            )
            for n in range(1000)
        ]
        await asyncio.gather(*(store.put(resource, expected=0) for resource in resources))
        await log.append("ex-1", [EVENT] * 1000, expected_seq=0, head=LogHead(1000, 1, 1000, 1000, SNAPSHOT))
        operations: dict[str, Callable[[int], Awaitable[object]]] = {
            "get": lambda n: store.get(resources[n % 1000].key),
            "find by slug": lambda n: store.find("agent", "acme", f"a{n % 1000}"),
            "list 50 by field": lambda n: store.list("agent", fields={"even": "1"}),
            "head of a log": lambda n: log.head("ex-1"),
            "read 10 events": lambda n: log.read("ex-1", after_seq=n % 900, limit=10),
        }
        return [await _repeated(name, operation, count) for name, operation in operations.items()]


async def _repeated(name: str, operation: Callable[[int], Awaitable[object]], count: int) -> Result:
    clock = Clock()
    for number in range(count):
        await clock.timed(operation(number))
    return clock.result(name, count)


# Checkpoints


def deep_agent(saver: Any) -> Any:
    """A deep agent which, in every turn, calls one tool and answers in 250 bytes."""
    from deepagents import create_deep_agent
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.tools import tool

    class Model(GenericFakeChatModel):
        def bind_tools(self, *args: Any, **options: Any) -> Any:
            return self

    @tool
    async def look_up(number: int) -> str:
        """Look something up."""
        return "r" * 250

    def script() -> Iterator[AIMessage]:
        number = 0
        while True:
            number += 1
            call = {"name": "look_up", "args": {"number": number}, "id": f"call-{number}"}
            yield AIMessage(content="c" * 50, tool_calls=[call])
            yield AIMessage(content="a" * 250)

    return create_deep_agent(model=Model(messages=script()), tools=[look_up], checkpointer=saver)


@asynccontextmanager
async def library_saver(path: Path) -> AsyncIterator[Any]:
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
        yield saver


async def turns(name: str, saver: Any, count: int, after_turn: Callable[[], Awaitable[object]]) -> Result:
    """Turns of one thread; CPU includes the agent's own."""
    agent = deep_agent(saver)
    config = {"configurable": {"thread_id": "thread-1"}, "metadata": {"execution_id": "ex-1"}}
    history = [("user", "q" * 250)]
    cpu: list[float] = []
    for _ in range(count):
        began = time.process_time()
        async for _ in agent.astream(
            {"messages": history}, config, stream_mode="updates", durability="async"
        ):
            pass
        cpu.append(time.process_time() - began)
        await after_turn()
    edge = min(10, count)
    return {
        "name": name,
        "cpu_ms_first_turns": round(statistics.median(cpu[:edge]) * 1e3, 2),
        "cpu_ms_last_turns": round(statistics.median(cpu[-edge:]) * 1e3, 2),
    }


def stored_bytes(path: Path) -> int:
    """Bytes in use by the database, its write-ahead log folded in and free pages not counted."""
    connection = apsw.Connection(str(path))
    connection.pragma("wal_checkpoint", "TRUNCATE")
    pages = connection.pragma("page_count") - connection.pragma("freelist_count")
    size: int = pages * connection.pragma("page_size")
    connection.close()
    return size


async def nothing() -> None: ...


async def checkpoints(folder: Path, count: int) -> list[Result]:
    """A turn with our checkpoints, pruned and not, with the library's, and without any."""
    results = [await turns("no checkpoints", None, count, nothing)]
    for name, keep in (("our checkpoints", 0), ("our checkpoints, pruned to 5 each turn", 5)):
        path = folder / f"checkpoints{keep}.db"
        async with SqliteCheckpoints(path) as opened:

            async def prune(opened: SqliteCheckpoints = opened, keep: int = keep) -> None:
                await opened.prune("thread-1", keep=keep)

            results.append(await turns(name, opened.saver, count, prune if keep else nothing))
        results[-1]["bytes_per_turn"] = stored_bytes(path) // count
    if importlib.util.find_spec("langgraph.checkpoint.sqlite"):
        path = folder / "library.db"
        async with library_saver(path) as saver:
            results.append(await turns("the library's checkpoints", saver, count, nothing))
        results[-1]["bytes_per_turn"] = stored_bytes(path) // count
    return results


async def measure(folder: Path, writers: int, updates: int, turn_count: int) -> dict[str, list[Result]]:
    return {
        "writes": [
            commit_floor(folder, updates),
            await append(folder, 1, updates),
            await append(folder, writers, updates),
            await put(folder, 1, updates),
            await put(folder, writers, updates),
        ],
        "reads": await reads(folder, 1000),
        "checkpoints": await checkpoints(folder, turn_count),
    }


def print_table(sections: dict[str, list[Result]]) -> None:
    for section, rows in sections.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        widths = [
            max(len(str(row.get(column, ""))) for row in [{column: column}, *rows]) for column in columns
        ]
        print(f"\n{section}")
        for row in [dict(zip(columns, columns, strict=True)), *rows]:
            cells = [str(row.get(column, "")) for column in columns]
            print(
                "  " + cells[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the embedded stores.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--writers", type=int, default=50)
    parser.add_argument("--updates", type=int, default=400, help="per writer")
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where to write; the default is the temporary folder")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        sections = asyncio.run(measure(Path(folder), options.writers, options.updates, options.turns))
    if options.json:
        print(json.dumps(sections))
    else:
        print_table(sections)


if __name__ == "__main__":
    main()
