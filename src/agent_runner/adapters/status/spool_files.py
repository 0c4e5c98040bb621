"""The file in which an attempt's events wait for the control plane: appended to, read from the front.

A file begins with `MAGIC`. Records follow, each a head and an `AppendEventsRequest`: its execution and
attempt, the position of its first event, and the events. The head is three numbers of 32 bits, big-endian:
length of the request (its highest bit marks calls that have not begun, see `SpoolFile.append`), CRC-32 of
the request, CRC-32 of the eight bytes before.

A file that was being written to when its process or the machine died has a torn end: a last record that
is cut short, or whose pages never reached the disk. What stands before it counts. Anything else that is not
as it was written is corruption.

Everything here blocks; `spools.py` calls it from a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from agent_runner.v1.events_pb2 import ExecutionEvent, RunDescribed
from agent_runner.v1.runner_service_pb2 import AppendEventsRequest

MAGIC = b"AROUTBX1"
BROKEN = ".broken"
"""Ending of files that were set aside."""
_HEAD = struct.Struct(">III")
_NOT_BEGUN = 1 << 31


class SpoolCorruptError(Exception):
    """The file is not as it was written. What stands before the place is fine."""

    def __init__(self, path: Path, offset: int, reason: str) -> None:
        self.path, self.offset = path, offset
        super().__init__(f"{path} is broken at byte {offset}: {reason}.")


@dataclass(frozen=True, slots=True)
class Record:
    """Some events of one attempt.

    Attributes:
        not_begun: they are tool calls that were not to run before they are stored.
        next: where the next record begins, in bytes.
    """

    request: AppendEventsRequest
    not_begun: bool
    next: int

    @property
    def end(self) -> int:
        """The position after its last event."""
        return self.request.position + len(self.request.events)


class SpoolFile:
    """One attempt's file, held by this process until it is closed or the process dies.

    Attributes:
        end: the position after the last event in it; 0 while nothing was appended.
    """

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self.end = 0
        self._descriptor = descriptor
        self._size = size
        self._read_from = len(MAGIC)
        """Every record before this byte was passed by `read`."""

    @classmethod
    def create(cls, path: Path) -> SpoolFile:
        """Make the file, with mode 0600, and hold it.

        Raises:
            OSError: the disk is full or the like; nothing is left behind.
        """
        if path.exists():
            raise FileExistsError(f"{path} is there already.")
        # Held before it has its name, so that nobody can take it for one that was left behind.
        scratch = path.with_suffix(".new")
        descriptor = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, MAGIC)
            scratch.rename(path)
        except OSError:
            os.close(descriptor)
            scratch.unlink(missing_ok=True)
            raise
        return cls(path, descriptor, len(MAGIC))

    @classmethod
    def take(cls, path: Path) -> SpoolFile | None:
        """Hold a file that was left behind; None when it is gone.

        Raises:
            BlockingIOError: another process holds it, or another part of this one.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        if not found.st_nlink:
            os.close(descriptor)  # whoever held it before has delivered and removed it
            return None
        return cls(path, descriptor, found.st_size)

    def append(self, request: AppendEventsRequest, *, not_begun: bool = False) -> None:
        """Add events; they are the kernel's when this returns, and on the disk after `sync`.

        Args:
            not_begun: the events are tool calls that do not run before they are stored. From a file that
                was left behind they are not delivered: see `read`.

        Raises:
            OSError: the disk is full or the like; the file is as before.
        """
        body = request.SerializeToString()
        length = len(body) | (_NOT_BEGUN if not_begun else 0)
        front = struct.pack(">II", length, zlib.crc32(body))
        written = memoryview(front + struct.pack(">I", zlib.crc32(front)) + body)
        try:
            offset = self._size
            while written:
                done = os.pwrite(self._descriptor, written, offset)
                written, offset = written[done:], offset + done
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size = offset
        self.end = request.position + len(request.events)

    def sync(self) -> None:
        """Return when what was appended would survive a power cut."""
        os.fsync(self._descriptor)

    def read(
        self, position: int, *, most_bytes: int, most_events: int, left_behind: bool = False
    ) -> tuple[int, Sequence[ExecutionEvent]]:
        """The next events from a position on, as many as one append may have.

        Args:
            position: of the attempt's events, never less than before.
            left_behind: whoever wrote the file is gone. Then a tool call that was not to run before it was
                stored has not run, and the next attempt must not take it for one that was cut off: an
                event that changes nothing stands in its place.

        Returns:
            The position of the first one, and the events; none at the end of the file.

        Raises:
            SpoolCorruptError: there is nothing before the place that is broken.
        """
        first, size = position, 0
        events: list[ExecutionEvent] = []
        try:
            for record in self._records():
                if record.end > position:
                    wanted = _shown(record, left_behind)[max(0, position - record.request.position) :]
                    if not events:
                        first = position = max(position, record.request.position)
                    size += record.next - self._read_from
                    if events and (
                        record.request.position > position
                        or size > most_bytes
                        or len(events) + len(wanted) > most_events
                    ):
                        break
                    events += wanted
                    position = record.end
                self._read_from = record.next
        except SpoolCorruptError:
            if not events:
                raise
        return first, events

    def torn(self) -> int:
        """How many bytes of the file are a torn end; what `read` has not passed counts."""
        offset = self._read_from
        for record in self._records():
            offset = record.next
        return max(0, self._size - offset)

    def close(self) -> None:
        """Let go of it. It stays, for whoever delivers it."""
        os.close(self._descriptor)

    def remove(self) -> None:
        """Remove it and let go of it."""
        try:
            self.path.unlink(missing_ok=True)
        finally:
            self.close()  # in this order: held until it is gone

    @property
    def aside(self) -> Path:
        """Where `set_aside` puts it."""
        return self.path.with_suffix(BROKEN)

    def set_aside(self) -> None:
        """Keep it for people to look at, where nobody tries to deliver it, and let go of it."""
        try:
            self.path.rename(self.aside)
        finally:
            self.close()

    def _records(self) -> Iterator[Record]:
        """The records from `_read_from` on, up to a torn end."""
        offset = self._read_from
        if offset == len(MAGIC) and self._size and (found := self._bytes(0, offset)) != MAGIC[: len(found)]:
            raise SpoolCorruptError(self.path, 0, "it is no file of events")
        while self._size - offset >= _HEAD.size:
            head = self._bytes(offset, _HEAD.size)
            length, checksum, head_checksum = _HEAD.unpack(head)
            not_begun, length = bool(length & _NOT_BEGUN), length & ~_NOT_BEGUN
            if zlib.crc32(head[:8]) != head_checksum:
                if not any(self._bytes(offset, self._size - offset)):
                    return  # the size was written, the pages were not
                raise SpoolCorruptError(self.path, offset, "a record's head is not what was written")
            following = offset + _HEAD.size + length
            if following > self._size:
                return
            body = self._bytes(offset + _HEAD.size, length)
            if zlib.crc32(body) != checksum:
                if following == self._size:
                    return
                raise SpoolCorruptError(self.path, offset, "a record is not what was written")
            try:
                yield Record(AppendEventsRequest.FromString(body), not_begun, following)
            except DecodeError as error:
                raise SpoolCorruptError(self.path, offset, "a record holds no events") from error
            offset = following

    def _bytes(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)


def _shown(record: Record, left_behind: bool) -> Sequence[ExecutionEvent]:
    events = record.request.events
    if not (left_behind and record.not_begun):
        return events
    return [no_event(event.time) for event in events]


def no_event(time: str) -> ExecutionEvent:
    """An event that changes nothing, for the place of one that must not be told."""
    return ExecutionEvent(time=time, run_described=RunDescribed())
