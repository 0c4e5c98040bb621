"""Delivering what attempts left behind that died, or ran out of time, while the control plane was away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Final, NoReturn
from weakref import WeakValueDictionary

import structlog

from agent_runner.adapters.status.outbox import MOST_BATCH_BYTES, MOST_BATCH_EVENTS
from agent_runner.adapters.status.spool_files import SpoolCorruptError, SpoolFile
from agent_runner.adapters.status.spools import Spool, SpoolName
from agent_runner.client.channels import Channel
from agent_runner.client.errors import RemoteError
from agent_runner.errors import (
    AgentRunnerError,
    ConflictError,
    FailedPreconditionError,
    FencedError,
    InvalidRequestError,
    NotFoundError,
    PositionError,
    UnavailableError,
)
from agent_runner.v1.events_pb2 import ExecutionEvent
from agent_runner.v1.runner_service_pb2 import AppendEventsRequest, AppendEventsResponse

log = structlog.get_logger(__name__)

APPEND: Final = "/agent_runner.v1.RunnerService/AppendEvents"
_CALL = timedelta(seconds=20)
NOT_WANTED: Final = (FencedError, ConflictError, FailedPreconditionError, NotFoundError)
"""Answers after which nobody wants to know what the attempt had to say."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_LOOK_EVERY = 10.0
"""Seconds between looks for files that another process, since dead, has left."""
_HOLDER_PATIENCE = 5.0
"""Seconds the next attempt waits for who holds a file: it is about to close it, or is not alive enough to."""
_HOLDER_LOOKS = 0.05
_FAULT_PATIENCE = 60.0
"""Seconds the next attempt waits for a control plane that fails at a file: it may be the file's fault."""


class Leftovers:
    """Delivers the files of a spool which nobody writes any more.

    Each is delivered under the attempt that wrote it. What the control plane has is skipped there, so a
    file may be delivered again after any interruption.
    """

    def __init__(self, channel: Channel, spool: Spool) -> None:
        self._channel = channel
        self._spool = spool
        self._failing: dict[SpoolName, float] = {}
        """When the control plane first failed at a file an attempt waits for, on the loop's clock."""
        # Within this process; other ones are kept away by the hold on the file.
        self._delivering: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def deliver(self, execution_id: str) -> None:
        """Deliver what earlier attempts of an execution left on this host, before the next one begins.

        Once it has begun, the control plane refuses them. The execution does not wait for a file whose
        holder does not let go of it, nor for one the control plane cannot take.

        Raises:
            UnavailableError: the control plane is away; try again.
            RemoteError: it fails; try again, for a minute.
        """
        for name in self._spool.names(execution_id):
            try:
                if not await self._deliver(name, patience=_HOLDER_PATIENCE):
                    log.warning("events of an earlier attempt are held by somebody else", **_of(name))
            except (AgentRunnerError, OSError) as error:
                if isinstance(error, UnavailableError) or self._may_pass(name, error):
                    raise
                log.warning("events of an earlier attempt were not taken", reason=str(error), **_of(name))
            self._failing.pop(name, None)

    def _may_pass(self, name: SpoolName, error: Exception) -> bool:
        """Whether what the control plane failed at is to be tried again: for a minute from the first time."""
        now = asyncio.get_running_loop().time()
        first = self._failing.setdefault(name, now)
        return isinstance(error, RemoteError) and error.retryable and now - first < _FAULT_PATIENCE

    async def run(self) -> NoReturn:
        """Deliver what nobody takes up again, for as long as this is awaited."""
        pause = _FIRST_PAUSE
        while True:
            self._spool.left.clear()
            if await self._deliver_all():
                pause, wait = _FIRST_PAUSE, _LOOK_EVERY
            else:
                wait, pause = pause, min(pause * 2, _LONGEST_PAUSE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._spool.left.wait()

    async def _deliver_all(self) -> bool:
        """Whether nothing is to be tried again soon; what somebody holds is not ours to try."""
        done = True
        for name in self._spool.names():
            try:
                await self._deliver(name, wait_for_server=True)
            except (AgentRunnerError, OSError) as error:
                done = False
                log.debug("events of an ended attempt not taken yet", reason=str(error), **_of(name))
        return done

    async def _deliver(self, name: SpoolName, *, patience: float = 0, wait_for_server: bool = False) -> bool:
        """Deliver a file and remove it; False when somebody holds it for longer than `patience`."""
        async with self._delivering.setdefault(name.execution_id, asyncio.Lock()):
            try:
                file = await self._take(name, patience)
            except BlockingIOError:
                return False
            if file is not None:
                await self._deliver_held(name, file, wait_for_server)
            return True

    async def _take(self, name: SpoolName, patience: float) -> SpoolFile | None:
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        while True:
            try:
                return await self._spool.take(name)
            except BlockingIOError:
                if loop.time() >= until:
                    raise
            await asyncio.sleep(_HOLDER_LOOKS)

    async def _deliver_held(self, name: SpoolName, file: SpoolFile, wait_for_server: bool) -> None:
        sent, let_go = 0, file.close
        try:
            sent = await self._send(name, file, wait_for_server)
            let_go = file.remove
            log.info("events of an ended attempt delivered", events=sent, **_of(name))
        except NOT_WANTED as error:
            let_go = file.remove
            log.info("events of an ended attempt dropped", reason=str(error), **_of(name))
        except (SpoolCorruptError, InvalidRequestError, PositionError) as error:
            let_go = file.set_aside
            log.error("a file of events is set aside", path=str(file.aside), reason=str(error), **_of(name))
        finally:
            await self._spool.run(let_go)

    async def _send(self, name: SpoolName, file: SpoolFile, wait_for_server: bool) -> int:
        """Send all of it; returns how many events that were.

        Raises:
            SpoolCorruptError: it is broken; what stands before was sent.
            PositionError: the log lacks what came before it: a backup was restored, for example.
            AgentRunnerError: see `agent_runner.client.errors`.
        """
        position = sent = 0
        while True:
            position, events = await self._spool.run(partial(_read, file, position))
            if not events:
                break
            await self._append(name, position, events, wait_for_server)
            position, sent = position + len(events), sent + len(events)
        if torn := await self._spool.run(file.torn):
            log.warning("a file of events has a torn end", bytes=torn, **_of(name))
        return sent

    async def _append(
        self, name: SpoolName, position: int, events: Sequence[ExecutionEvent], wait_for_server: bool
    ) -> None:
        request = AppendEventsRequest(
            execution_id=name.execution_id, attempt=name.attempt, position=position, events=events
        )
        try:
            await self._channel.unary(
                APPEND, request, AppendEventsResponse, timeout=_CALL, wait_for_server=wait_for_server
            )
        except RemoteError as error:
            if error.code == "OUT_OF_RANGE":
                raise PositionError(name.execution_id, position, -1) from error
            raise


def _read(file: SpoolFile, position: int) -> tuple[int, Sequence[ExecutionEvent]]:
    return file.read(position, most_bytes=MOST_BATCH_BYTES, most_events=MOST_BATCH_EVENTS, left_behind=True)


def _of(name: SpoolName) -> dict[str, str | int]:
    return {"execution_id": name.execution_id, "attempt": name.attempt}
