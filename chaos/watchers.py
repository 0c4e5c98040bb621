"""Watchers that are thrown off all the time, by every way there is to watch."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import timedelta

import grpc
import grpc.aio
import httpx
from google.protobuf.json_format import ParseDict

from agent_runner.client import AgentRunner
from agent_runner.domain.phases import is_terminal
from agent_runner.v1.events_pb2 import ExecutionEvent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.io_pb2 import AgentExecutionId

GRPC, EVENTS, SUBSCRIBE = "gRPC", "server-sent events", "subscribe"
_SUBSCRIBE = "/ai.stigmer.agentic.agentexecution.v1.AgentExecutionQueryController/subscribe"
_AWAY = timedelta(minutes=10)
_SILENCE = timedelta(seconds=45)
_PAUSE = 0.1


@dataclass(slots=True)
class Watched:
    """One execution and what its watcher has collected."""

    execution_id: str
    session_id: str
    message: str = ""
    events: list[ExecutionEvent] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    ended: bool = False
    cancelled: bool = False
    """Whether somebody asked to cancel it, and was heard."""
    compacted: bool = False
    """Whether its log was compacted since."""

    def take(self, event: ExecutionEvent) -> None:
        if event.seq != len(self.events) + 1:
            self.problems.append(f"seq {event.seq} came after {len(self.events)}")
        self.events.append(event)
        if is_terminal(event.phase_changed.phase):
            self.ended = True


@dataclass(frozen=True, slots=True)
class State:
    """One state a subscriber was shown.

    Attributes:
        connection: number of the subscription it came by.
        seq: of the newest event in it.
        digest: the status, comparable.
    """

    connection: int
    seq: int
    digest: bytes


@dataclass(slots=True)
class Subscribed:
    """What the subscribers of one execution were shown."""

    watched: Watched
    states: list[State] = field(default_factory=list)
    ended: bool = False


def digest(status: AgentExecutionStatus) -> bytes:
    """A status without what is not from the log: who changed the resource, and its place in the queue."""
    copy = AgentExecutionStatus()
    copy.CopyFrom(status)
    copy.ClearField("audit")
    copy.run.ClearField("queue_position")
    return copy.SerializeToString(deterministic=True)


class Watchers:
    """Collect everything, breaking off after a few events and coming back; now and then by a new connection.

    Args:
        address: of the gRPC port, and
        web: of the web port: both by way of proxies.
    """

    def __init__(self, address: str, web: str, rng: random.Random) -> None:
        self._address = address
        self._web = web
        self._rng = rng
        self.begun = asyncio.Event()
        """Set when the first tool begins."""
        self.reconnects: Counter[str] = Counter()
        self.ways: Counter[str] = Counter()
        """How many executions were watched in which way."""
        self.subscribed: list[Subscribed] = []

    async def follow(self, watched: Watched, way: str, *, most: int) -> None:
        """Collect all events, at most `most` at a time."""
        self.ways[way] += 1
        while not watched.ended:
            if way == EVENTS:
                await self._follow_web(watched, most)
            else:
                await self._follow_grpc(watched, most)

    def _take(self, watched: Watched, event: ExecutionEvent) -> None:
        watched.take(event)
        if event.HasField("tool_call_started"):
            self.begun.set()

    async def _follow_grpc(self, watched: Watched, most: int) -> None:
        async with AgentRunner(self._address, org="local") as runner:
            for _ in range(self._rng.randint(1, 4)):
                left = self._rng.randint(1, most)
                seen = runner.executions.watch(
                    watched.execution_id,
                    after_seq=len(watched.events),
                    patience=_AWAY,
                    on_reconnect=self._count,
                )
                async with aclosing(seen):  # type: ignore[type-var]
                    async for event in seen:
                        self._take(watched, event)
                        left -= 1
                        if not left:
                            break
                if watched.ended:
                    return
                self.reconnects[GRPC] += 1

    def _count(self, reason: Exception | None) -> None:
        self.reconnects[GRPC] += reason is not None

    async def _follow_web(self, watched: Watched, most: int) -> None:
        waits = httpx.Timeout(10, read=_SILENCE.total_seconds())
        async with httpx.AsyncClient(timeout=waits, trust_env=False) as client:
            for _ in range(self._rng.randint(1, 4)):
                try:
                    await self._read_web(client, watched, self._rng.randint(1, most))
                except httpx.TransportError:
                    await asyncio.sleep(_PAUSE)
                if watched.ended:
                    return
                self.reconnects[EVENTS] += 1

    async def _read_web(self, client: httpx.AsyncClient, watched: Watched, left: int) -> None:
        url = f"http://{self._web}/v1/executions/{watched.execution_id}/events"
        headers = {"Last-Event-ID": str(len(watched.events))} if watched.events else {}
        async with client.stream("GET", url, headers=headers) as answer:
            if answer.status_code >= 500:
                await asyncio.sleep(_PAUSE)
                return
            if answer.status_code != 200:
                raise AssertionError(f"{watched.execution_id}: {answer.status_code} at {len(watched.events)}")
            async with aclosing(_messages(answer)) as messages:  # type: ignore[type-var]
                async for name, data in messages:
                    if name == "end":
                        watched.problems.append(f"was told of the end after {len(watched.events)}")
                        return
                    self._take(watched, ParseDict(json.loads(data), ExecutionEvent()))
                    left -= 1
                    if watched.ended or not left:
                        return

    async def subscribe(self, watched: Watched, *, most: int) -> None:
        """Collect states, coming back all the time, until one of a terminal phase has come."""
        seen = Subscribed(watched)
        self.subscribed.append(seen)
        self.ways[SUBSCRIBE] += 1
        connection = 0
        while not seen.ended:
            connection += 1
            async with AgentRunner(self._address, org="local") as runner:
                try:
                    await self._read_states(runner, seen, connection, self._rng.randint(1, most))
                except grpc.aio.AioRpcError as error:
                    if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                        raise
                    await asyncio.sleep(_PAUSE)
                except TimeoutError:
                    watched.problems.append("a subscriber has heard nothing for a long time")
            self.reconnects[SUBSCRIBE] += not seen.ended

    async def _read_states(self, runner: AgentRunner, seen: Subscribed, connection: int, left: int) -> None:
        states = runner._channel.stream(
            _SUBSCRIBE, AgentExecutionId(value=seen.watched.execution_id), AgentExecution, silence=_AWAY
        )
        async with aclosing(states):  # type: ignore[type-var]
            async for state in states:
                if seen.ended:
                    seen.watched.problems.append("a subscriber was told more after the end")
                status = state.status
                seen.states.append(State(connection, status.run.last_seq, digest(status)))
                seen.ended = is_terminal(status.phase)
                left -= 1
                if not left and not seen.ended:
                    return


async def _messages(answer: httpx.Response) -> AsyncIterator[tuple[str, str]]:
    """Names and data of server-sent events; heartbeats are left out."""
    name, data = "", ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
        elif not line and data:
            yield name, data
            name, data = "", ""
