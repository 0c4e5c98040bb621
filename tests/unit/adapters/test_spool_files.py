"""The file in which events wait: what was appended is read, whatever happened to the end of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runner.adapters.status.spool_files import MAGIC, SpoolCorruptError, SpoolFile
from agent_runner.adapters.status.spools import Spool
from agent_runner.v1.events_pb2 import ExecutionEvent, MessageDelta, ToolCallStarted, WarningRaised
from agent_runner.v1.runner_service_pb2 import AppendEventsRequest

MANY = 1000


def warning(number: int) -> ExecutionEvent:
    return ExecutionEvent(warning_raised=WarningRaised(text=str(number)))


def numbered(position: int, count: int) -> AppendEventsRequest:
    events = [warning(number) for number in range(position, position + count)]
    return AppendEventsRequest(execution_id="aex-1", attempt=1, position=position, events=events)


def read_all(
    file: SpoolFile, position: int = 0, most_bytes: int = 1 << 20, most_events: int = MANY
) -> list[tuple[int, str]]:
    """Every event and its position, up to the end or the place that is broken."""
    found: list[tuple[int, str]] = []
    while True:
        position, events = file.read(position, most_bytes=most_bytes, most_events=most_events)
        if not events:
            return found
        found += [(position + n, event.warning_raised.text) for n, event in enumerate(events)]
        position += len(events)


def expected(count: int, first: int = 0) -> list[tuple[int, str]]:
    return [(number, str(number)) for number in range(first, first + count)]


@contextmanager
def written(counts: Sequence[int], ends: list[int] | None = None) -> Iterator[Path]:
    """A file with so many events in each record, left behind; `ends` gets where each record ends."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "aex-1.1.events"
        file, position = SpoolFile.create(path), 0
        for count in counts:
            file.append(numbered(position, count))
            position += count
            if ends is not None:
                ends.append(path.stat().st_size)
        file.close()
        yield path


@contextmanager
def taken(path: Path) -> Iterator[SpoolFile]:
    file = SpoolFile.take(path)
    assert file is not None
    try:
        yield file
    finally:
        file.close()


COUNTS = st.lists(st.integers(1, 5), min_size=1, max_size=8)


@given(COUNTS, st.integers(0, 50), st.integers(1, 400), st.integers(1, 10))
def test_what_was_appended_is_read_from_any_position_in_pieces_of_any_size(
    counts: list[int], position: int, most_bytes: int, most_events: int
) -> None:
    whole = sum(counts)
    with written(counts) as path, taken(path) as file:
        found = read_all(file, position, most_bytes, most_events)
        assert found == expected(max(0, whole - position), position)
        assert file.torn() == 0


@given(COUNTS, st.data())
def test_a_file_cut_anywhere_gives_the_records_before_the_cut(counts: list[int], data: st.DataObject) -> None:
    ends: list[int] = []
    with written(counts, ends) as path:
        os.truncate(path, cut := data.draw(st.integers(0, path.stat().st_size)))
        with taken(path) as file:
            whole = [end for end in ends if end <= cut]
            assert read_all(file) == expected(sum(counts[: len(whole)]))
            assert file.torn() == max(0, cut - (whole or [len(MAGIC)])[-1])


@given(COUNTS, st.data())
def test_a_broken_byte_anywhere_gives_no_event_that_was_not_written(
    counts: list[int], data: st.DataObject
) -> None:
    with written(counts) as path:
        body = bytearray(path.read_bytes())
        body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(body)
        with taken(path) as file:
            found: list[tuple[int, str]] = []
            try:
                while True:
                    _, events = file.read(len(found), most_bytes=100, most_events=3)
                    if not events:
                        break
                    found += [(len(found) + n, e.warning_raised.text) for n, e in enumerate(events)]
                broken = False
            except SpoolCorruptError as error:
                broken = True
                assert str(path) in str(error)
            assert found == expected(len(found))
            # A last record that is not whole is a torn end; anything else is told.
            assert broken or len(found) == sum(counts[:-1])


def test_pages_that_never_reached_the_disk_are_a_torn_end() -> None:
    with written([2, 3]) as path:
        with path.open("ab") as file:
            file.write(bytes(4096))
        with taken(path) as left:
            assert read_all(left) == expected(5)
            assert left.torn() == 4096


def test_records_after_a_broken_one_are_not_skipped_to() -> None:
    with written([1, 1, 1]) as path:
        body = bytearray(path.read_bytes())
        body[len(body) // 2] ^= 1
        path.write_bytes(body)
        with taken(path) as file, pytest.raises(SpoolCorruptError, match="broken at byte"):
            read_all(file, most_events=1)


def test_a_file_of_something_else_is_told() -> None:
    with written([1]) as path:
        path.write_bytes(b"not ours, but long enough to be")
        with taken(path) as file, pytest.raises(SpoolCorruptError, match="no file of events"):
            read_all(file)


def test_a_file_is_held_by_one_until_it_is_let_go() -> None:
    with written([1]) as path, taken(path), pytest.raises(BlockingIOError):
        SpoolFile.take(path)
    assert SpoolFile.take(path) is None


def test_a_file_that_cannot_be_moved_is_let_go_of_even_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError("The directory is read-only.")

    with written([1]) as path:
        for way in ("rename", "unlink"):
            file = SpoolFile.take(path)
            assert file is not None
            with monkeypatch.context() as patched, pytest.raises(PermissionError):
                patched.setattr(Path, way, refused)
                file.set_aside() if way == "rename" else file.remove()
        with taken(path) as again:
            assert read_all(again) == expected(1)


def test_a_file_is_private_and_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "aex-1.1.events"
    file = SpoolFile.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        SpoolFile.create(path)
    file.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_is_appended_while_it_is_read_follows(tmp_path: Path) -> None:
    file = SpoolFile.create(tmp_path / "aex-1.1.events")
    for number in range(5):
        file.append(numbered(number, 1))
        assert read_all(file, number) == expected(1, number)
    file.append(numbered(3, 4))  # a part of it a second time
    assert read_all(file, 5) == expected(2, 5)
    file.close()


def test_calls_that_had_not_begun_are_not_told_once_their_attempt_is_gone(tmp_path: Path) -> None:
    started = ExecutionEvent(time="now", tool_call_started=ToolCallStarted(tool_call_id="c1", name="execute"))
    word = ExecutionEvent(message_delta=MessageDelta(message_id="m1", text="word"))
    file = SpoolFile.create(path := tmp_path / "aex-1.1.events")
    for position, event in enumerate((word, started, word)):
        request = AppendEventsRequest(execution_id="aex-1", attempt=1, position=position, events=[event])
        file.append(request, not_begun=event is started)

    _, alive = file.read(0, most_bytes=1 << 20, most_events=MANY)
    file.close()
    with taken(path) as left:
        _, told = left.read(0, most_bytes=1 << 20, most_events=MANY, left_behind=True)

    assert [event.WhichOneof("event") for event in alive] == [
        "message_delta",
        "tool_call_started",
        "message_delta",
    ]
    assert [event.WhichOneof("event") for event in told] == [
        "message_delta",
        "run_described",
        "message_delta",
    ]


async def test_files_that_were_set_aside_take_no_room(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most_bytes=1000)
    (tmp_path / "aex-1.1.events").write_bytes(b"x" * 600)
    (tmp_path / "aex-2.1.broken").write_bytes(b"x" * 5000)

    assert spool.has_room(400)
    assert not spool.has_room(401)
    await spool.aclose()
