"""A hundred watchers of one execution, beside bare streams of the same messages."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_runner.adapters.machine.ports import free_port
from agent_runner.client.channels import Channel
from agent_runner.v1.execution_service_pb2 import WatchExecutionRequest
from bench.appending import Appender, pending_executions
from bench.plans import Plan
from bench.product import Processes
from bench.rows import Floor, Row, least, quantile, row_of
from bench.streams import GO, STREAM

_WATCH = "/agent_runner.v1.ExecutionService/WatchExecution"
_APPENDED = {"one by one": 1, "ten by ten": 10}
"""Events of one append; ten is what runners send at most."""
_BEGIN_WITHIN = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a crowd of watchers got.

    Attributes:
        messages: those of the first watcher, serialized.
        events: of each watcher.
        deliveries: messages, all watchers together.
        ended: the clock when the last watcher had the last message.
    """

    messages: list[bytes]
    events: int
    deliveries: int
    ended: float


async def watchers(processes: Processes, folder: Path, plan: Plan) -> list[Row]:
    """Events a second that reach watchers while they are appended, each with a connection of its own.

    The watchers live in a process of their own, and there is no agent: what is measured is the control
    plane. The floor is a bare gRPC server that sends the same messages to the same watchers.
    """
    executions = await pending_executions(processes, folder, plan.watched * len(_APPENDED))
    rows = []
    for number, (how, events) in enumerate(_APPENDED.items()):
        chosen = executions[number * plan.watched : (number + 1) * plan.watched]
        rows.append(await _delivered(processes, folder, plan, chosen, how, events))
    return rows


async def _delivered(
    processes: Processes, folder: Path, plan: Plan, executions: list[str], how: str, events: int
) -> Row:
    rates, messages, bare = [], [], []
    for execution_id in executions:
        seconds, seen = await _ours(processes, execution_id, plan, events)
        rates.append(seen.events * plan.watchers / seconds)
        messages.append(seen.deliveries / seconds)
        bare.append(await _bare(seen, folder, plan))
    return row_of(
        f"events delivered to {plan.watchers} watchers, appended {how}",
        rates,
        "/s",
        floors=(Floor("bare gRPC streams of the same messages", quantile(bare, 0.5), "/s"),),
        budget=least(15_000),
        note=f"in {quantile(messages, 0.5):,.0f} messages/s; the clients share the cores",
    )


async def _ours(processes: Processes, execution_id: str, plan: Plan, events: int) -> tuple[float, Seen]:
    """Seconds from the first append until all watchers have all, and what they saw."""
    channel = Channel(processes.address)
    appender = Appender(channel, execution_id)
    request = WatchExecutionRequest(execution_id=execution_id)

    async def write() -> None:
        for _ in range(plan.appends):
            await appender.say(events)
        await appender.finish()

    try:
        await appender.start()
        return await _crowd(processes.address, _WATCH, request.SerializeToString(), plan.watchers, write)
    finally:
        await channel.aclose()


async def _bare(seen: Seen, folder: Path, plan: Plan) -> float:
    """Events a second when a server does nothing but send the messages that were seen."""
    path, address = folder / "messages.json", f"127.0.0.1:{free_port()}"
    text = json.dumps([base64.b64encode(message).decode() for message in seen.messages])
    await asyncio.to_thread(path.write_text, text)
    async with _child("bench.streams", address, str(path)):
        channel = Channel(address)

        async def go() -> None:
            await channel.unary(GO, WatchExecutionRequest(), WatchExecutionRequest, wait_for_server=True)

        try:
            seconds, bare = await _crowd(address, STREAM, b"", plan.watchers, go)
        finally:
            await channel.aclose()
    assert bare.events == seen.events, "the bare streams carried other events"
    return bare.events * plan.watchers / seconds


async def _crowd(
    address: str, method: str, request: bytes, count: int, write: Callable[[], Awaitable[None]]
) -> tuple[float, Seen]:
    """Let watchers connect, then write; returns when all streams have ended."""
    asked = base64.b64encode(request).decode()
    async with _child("bench.watch_clients", address, method, asked, str(count)) as child:
        # The first line says that every watcher has had its first message.
        async with asyncio.timeout(_BEGIN_WITHIN):
            await child.stdout.readline()
        began = time.perf_counter()
        await write()
        found = json.loads(await child.stdout.read())
        await child.wait()
    messages = [base64.b64decode(message) for message in found.pop("messages")]
    seen = Seen(messages=messages, **found)
    return seen.ended - began, seen


@contextlib.asynccontextmanager
async def _child(module: str, *arguments: str) -> AsyncIterator[Any]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdout=asyncio.subprocess.PIPE, limit=1 << 28
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()
