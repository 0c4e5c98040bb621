"""The directory in which events wait that could not be sent: bounded, and written to off the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

import structlog

from agent_runner.adapters.status.outbox import MOST_BATCH_BYTES, MOST_BATCH_EVENTS
from agent_runner.adapters.status.spool_files import BROKEN, SpoolFile, no_event
from agent_runner.adapters.status.times import now
from agent_runner.v1.events_pb2 import ExecutionEvent, WarningRaised
from agent_runner.v1.runner_service_pb2 import AppendEventsRequest

log = structlog.get_logger(__name__)

_NAME = re.compile(r"(?P<execution>.+)\.(?P<attempt>[0-9]+)\.events")
_TEXT_ALONE = frozenset({"message_delta", "tool_call_output"})
"""What gives when there is no room, rather than boundaries."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class SpoolName:
    """Whose events a file holds."""

    execution_id: str
    attempt: int


class Spool:
    """Files of events in one directory, a file per execution and attempt.

    Runners that share a data directory share it: a file is held by who writes or delivers it, and the
    kernel lets go of it when that process dies.
    """

    def __init__(self, directory: Path, most_bytes: int = 256 << 20) -> None:
        """
        Args:
            directory: made with mode 0700 when it is first needed.
            most_bytes: of all files in it together; see `Backlog.leave` for what may pass it.
        """
        self.directory = directory
        self.left = asyncio.Event()
        """Set when this process leaves a file behind."""
        self._most_bytes = most_bytes
        # One thread and no lock: what is written stays in order, also when who waits for it is cancelled.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="outbox")

    def backlog(self, execution_id: str, attempt: int) -> Backlog:
        """A place for the events of one attempt; nothing is written yet."""
        return Backlog(self, SpoolName(execution_id, attempt))

    def names(self, execution_id: str | None = None) -> Sequence[SpoolName]:
        """The files there are, oldest attempts first: of one execution or of all; some may be held."""
        try:
            # A directory that is empty but in an outage, read from the kernel's memory: no thread needed.
            entries = [path.name for path in self.directory.iterdir()]
        except FileNotFoundError:
            return []
        found = (_NAME.fullmatch(name) for name in entries)
        names = [SpoolName(unquote(name["execution"]), int(name["attempt"])) for name in found if name]
        return sorted(name for name in names if execution_id in (None, name.execution_id))

    def path(self, name: SpoolName) -> Path:
        return self.directory / f"{quote(name.execution_id, safe='')}.{name.attempt}.events"

    async def run(self, work: Callable[[], T]) -> T:
        """Do it on the thread; it is done to its end even if the caller is cancelled."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    async def take(self, name: SpoolName) -> SpoolFile | None:
        """Hold a file that was left behind; None when it is gone.

        Raises:
            BlockingIOError: another process holds it, or another part of this one.
        """
        taking = asyncio.get_running_loop().run_in_executor(
            self._thread, partial(SpoolFile.take, self.path(name))
        )
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(_let_go)
            raise

    async def aclose(self) -> None:
        """Wait for what is being written."""
        await asyncio.to_thread(self._thread.shutdown)

    def make(self) -> None:
        """Make the directory if there is none. Blocks."""
        self.directory.mkdir(mode=0o700, exist_ok=True)

    def has_room(self, more: int) -> bool:
        """Whether so many bytes more stay within the limit. Blocks.

        What was set aside as broken is for people to look at, and takes no room from what is to be delivered.
        """
        used = 0
        for path in self.directory.iterdir():
            if path.suffix == BROKEN:
                continue
            with contextlib.suppress(FileNotFoundError):  # somebody has delivered it meanwhile
                used += path.stat().st_size
        return used + more <= self._most_bytes


class Backlog:
    """What one attempt has said and could not send: in order, on disk.

    Attributes:
        end: the position after the last event on disk; 0 while there is none.
        used: whether anything may be on disk, what is being written included.
    """

    def __init__(self, spool: Spool, name: SpoolName) -> None:
        self._spool = spool
        self._name = name
        self.used = False
        self._file: SpoolFile | None = None
        self._told = False

    @property
    def end(self) -> int:
        return self._file.end if self._file is not None else 0

    async def keep(
        self, position: int, events: Sequence[ExecutionEvent], *, not_begun: Collection[int], sync: bool
    ) -> bool:
        """Write events that follow those on disk; False when there is no room for all of them.

        What had room is on disk even so, and is skipped when the same events are given again.

        Args:
            position: of the first of them.
            not_begun: positions of tool calls that do not run before they are stored.
            sync: return when they would survive a power cut, not the death of the process alone.
        """
        self.used = True
        return await self._spool.run(partial(self._keep, position, events, not_begun, sync))

    async def read(self, position: int) -> Sequence[ExecutionEvent]:
        """The next events from a position on, as many as go in one append; empty behind the last."""
        if self.end <= position:
            return ()
        return await self._spool.run(partial(self._read, position))

    async def remove(self) -> None:
        """Remove what is on disk, if anything is."""
        if self.used:
            await self._spool.run(self._remove)
            self.used = False

    async def leave(
        self, position: int, events: Sequence[ExecutionEvent], *, not_begun: Collection[int]
    ) -> None:
        """Write the last events, and let go of the file for whoever delivers it.

        When there is no room text gives: what of it is not on disk is dropped, and a warning among the
        events says so. Boundaries are written past the limit.
        """
        await self._spool.run(partial(self._leave, position, events, not_begun))
        self._spool.left.set()

    # What follows runs on the thread

    def _keep(
        self, position: int, events: Sequence[ExecutionEvent], not_begun: Collection[int], sync: bool
    ) -> bool:
        try:
            self._spool.make()
            for request, held in self._requests(position, events, not_begun):
                if not self._spool.has_room(request.ByteSize()):
                    self._tell("AGENT_RUNNER_OUTBOX_BYTES is reached")
                    return False
                self._append(request, held)
            if sync and self._file is not None:
                self._file.sync()
        except OSError as error:
            self._tell(str(error))
            return False
        return True

    def _append(self, request: AppendEventsRequest, not_begun: bool) -> None:
        if self._file is None:
            self._file = SpoolFile.create(self._spool.path(self._name))
            log.info("events are kept on disk", execution_id=self._name.execution_id)
        self._file.append(request, not_begun=not_begun)

    def _requests(
        self, position: int, events: Sequence[ExecutionEvent], not_begun: Collection[int]
    ) -> Iterator[tuple[AppendEventsRequest, bool]]:
        """The events that are not on disk, in pieces one append can take; whether each has not begun."""
        skipped = max(0, self.end - position)
        request, size, held = AppendEventsRequest(), 0, False
        for number, event in enumerate(events[skipped:], position + skipped):
            more = event.ByteSize()
            if request.events and (
                (number in not_begun) != held
                or size + more > MOST_BATCH_BYTES
                or len(request.events) >= MOST_BATCH_EVENTS
            ):
                yield request, held
                request, size = AppendEventsRequest(), 0
            if not request.events:
                request.execution_id, request.attempt = self._name.execution_id, self._name.attempt
                request.position, held = number, number in not_begun
            request.events.append(event)
            size += more
        if request.events:
            yield request, held

    def _read(self, position: int) -> Sequence[ExecutionEvent]:
        assert self._file is not None
        _, events = self._file.read(position, most_bytes=MOST_BATCH_BYTES, most_events=MOST_BATCH_EVENTS)
        return events

    def _remove(self) -> None:
        self._told = False
        if self._file is not None:
            self._file.remove()
            self._file = None

    def _leave(self, position: int, events: Sequence[ExecutionEvent], not_begun: Collection[int]) -> None:
        if not self._keep(position, events, not_begun, sync=True):
            self._leave_without_text(position, events, not_begun)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _leave_without_text(
        self, position: int, events: Sequence[ExecutionEvent], not_begun: Collection[int]
    ) -> None:
        on_disk = max(0, self.end - position)
        short = [*events[:on_disk], *_without_text(events[on_disk:])]
        try:
            for request, held in self._requests(position, short, not_begun):
                self._append(request, held)
            if self._file is not None:
                self._file.sync()
        except OSError as error:
            log.error(
                "events are lost: the control plane is away and the disk takes nothing",
                execution_id=self._name.execution_id,
                events=position + len(events) - max(position, self.end),
                reason=str(error),
            )

    def _tell(self, reason: str) -> None:
        # Once per outage is enough for people.
        if not self._told:
            log.warning("events wait in memory alone", execution_id=self._name.execution_id, reason=reason)
        self._told = True


def _let_go(taking: asyncio.Future[SpoolFile | None]) -> None:
    file = None if taking.cancelled() or taking.exception() else taking.result()
    if file is not None:
        file.close()


def _without_text(events: Sequence[ExecutionEvent]) -> Iterator[ExecutionEvent]:
    """Text replaced by events that change nothing, the first one by a warning.

    Replaced rather than left out, since positions must stay: some of it may be stored already.
    """
    dropped = [event for event in events if event.WhichOneof("event") in _TEXT_ALONE]
    characters = sum(len(getattr(event, event.WhichOneof("event") or "").text) for event in dropped)
    notice = (
        f"{characters} characters of text are missing here: the control plane was away, and its runner had "
        "no room to keep them."
    )
    for event in events:
        if event.WhichOneof("event") not in _TEXT_ALONE:
            yield event
        elif event is dropped[0]:
            yield ExecutionEvent(time=event.time or now(), warning_raised=WarningRaised(text=notice))
        else:
            yield no_event(event.time)
