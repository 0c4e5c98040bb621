"""Finds what blocks the event loop: calls that wait for disk, network, locks or processes in a running loop.

`blockbuster` wraps the functions that block; here stands which of their calls are ours to answer for:
those that an asynchronous function or a callback of `agent_runner` leads to. What a test or one of its
fakes does itself is its own affair. Such a call raises where it is made, and is kept in
`Detector.findings` too, since what is raised in a retry or a background task need not reach the test.
"""

from __future__ import annotations

import fcntl
import gc
import inspect
import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from blockbuster import BlockBuster
from blockbuster.blockbuster import BlockBusterFunction

from agent_runner import errors

OURS = str(Path(errors.__file__).parent) + os.sep
TESTS = str(Path(__file__).parent) + os.sep
_STANDARD = (sysconfig.get_path("stdlib") + os.sep, "<frozen ")
_INSTALLED = (sysconfig.get_path("purelib") + os.sep, sysconfig.get_path("platlib") + os.sep)
_ASYNCHRONOUS = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

FILES = ("builtins.open", "io.open", "os.open", "os.lstat", "os.fsync", "fcntl.flock")
DATABASE = ("apsw.Connection.execute", "apsw.Connection.executemany", "apsw.Cursor.execute")
WAITS = ("subprocess.Popen.communicate", "subprocess.Popen.wait", "socket.getaddrinfo")
"""What blocks and the library does not know."""


class Excuse(NamedTuple):
    """What a function of ours may do on the loop, itself or by what it calls, and why."""

    file: str
    """Below `src/agent_runner`, or a folder, for all functions in it."""
    function: str
    calls: str
    """What the names of the calls begin with; all, where it is empty."""
    why: str


EXCUSES = (
    Excuse(
        "adapters/store/database.py",
        "look_up",
        "apsw.",
        "rows by key from pages in memory, 5 to 20 microseconds; a thread and back takes five times that",
    ),
    Excuse(
        "adapters/status/spools.py",
        "names",
        "os.listdir",
        "a directory that is empty but in an outage, from the kernel's memory",
    ),
    Excuse("adapters/sandbox/local/sandbox.py", "_memory_file", "os.write", "a file in memory"),
    Excuse(
        "adapters/sandbox/local/sandbox.py",
        "_run",
        "os.read",
        "a pipe whose writer has ended: what is in it is there, or its end is",
    ),
    Excuse("adapters/sandbox/local/longrunning.py", "open_process", "os.open", "/dev/null"),
    Excuse(
        "adapters/skills/_locks.py",
        "_take",
        "os.open",
        "an empty file, once a turn and skill; made on a thread, a cancelled caller would lose it",
    ),
    Excuse(
        "adapters/sandbox/local/workspace.py", "write", "os.unlink", "one name, of an upload that broke off"
    ),
    Excuse("adapters/sandbox/local/provider.py", "directories", "os.stat", "one name, before files are read"),
    Excuse("domain/skills.py", "_mapping", "os.", "the library of YAML looks for its plug-ins"),
    Excuse("adapters/sandbox/local/proxy.py", "start", "", "once in a process, before its first sandbox"),
    Excuse("adapters/sandbox/local/proxy.py", "aclose", "os.", "once in a process, at its end"),
    Excuse("bootstrap/", "", "", "before anything is served"),
    Excuse("cli/", "", "", "a command has its loop for itself"),
    Excuse("adapters/temporal/managed.py", "start", "os.", "before anything is served"),
    Excuse("adapters/store/mongo_database.py", "open", "os.stat", "before anything is served"),
    Excuse("adapters/sandbox/daytona/api.py", "connect", "", "once in a process, and the library does it"),
)

_LIBRARIES = (
    ("asyncio/base_events.py", {"subprocess_exec", "subprocess_shell"}),  # pipes and /dev/null
    ("<frozen importlib._bootstrap>", {"_find_and_load"}),  # a module at its first use, once in a process
    ("structlog/_base.py", {"_proxy_to_logger"}),  # the source lines of a traceback
)
"""What may block below functions that are not ours."""


class Finding(NamedTuple):
    call: str
    frames: tuple[str, ...]
    """From the call to the loop, each as `file:line function`."""

    def __str__(self) -> str:
        return f"{self.call} blocks the event loop, called by\n  " + "\n  ".join(self.frames)


class Detector:
    """While it is active, what blocks a loop raises `blockbuster.BlockingError`."""

    def __init__(self) -> None:
        self._findings: list[Finding] = []
        self._library = BlockBuster()
        for name in (*FILES, *DATABASE, *WAITS):
            self._library.functions[name] = BlockBusterFunction(None, name)
        for name, function in self._library.functions.items():
            function.can_block_predicate = self._predicate(name, function)

    @contextmanager
    def active(self) -> Iterator[Detector]:
        self._library.activate()
        gc.callbacks.append(_note_collection)
        try:
            yield self
        finally:
            gc.callbacks.remove(_note_collection)
            self._library.deactivate()

    def take(self) -> Sequence[Finding]:
        """What was found since the last time."""
        findings, self._findings = self._findings, []
        return findings

    def _predicate(self, name: str, function: BlockBusterFunction) -> Callable[..., bool]:
        harmless = function.can_block_predicate
        libraries = (*_LIBRARIES, *function.can_block_functions)

        def may_block(*args: Any, **kwargs: Any) -> bool:
            if harmless(*args, **kwargs) or (name == "fcntl.flock" and args[1] & fcntl.LOCK_NB):
                return True
            if getattr(_collection, "runs", False):
                return True  # an end of anything, in the middle of something else
            frames = _callback(sys._getframe(2))
            if not _is_ours(frames) or _is_in(frames, libraries) or _is_excused(frames, name):
                return True
            self._findings.append(Finding(name, tuple(map(_told, frames))))
            return False

        return may_block


_collection = threading.local()


def _note_collection(phase: str, info: object) -> None:
    _collection.runs = phase == "start"


def _callback(frame: FrameType | None) -> list[FrameType]:
    """The frames up to the loop, the innermost first."""
    frames = []
    while frame is not None and not _is_in([frame], [("asyncio/events.py", {"_run"})]):
        frames.append(frame)
        frame = frame.f_back
    return frames


def _is_ours(frames: Sequence[FrameType]) -> bool:
    """Whether code of ours leads to the call, unless a test makes it or calls us like a plain function."""
    files = [frame.f_code.co_filename for frame in frames]
    made_by = next(
        (file for file in files if file.startswith(_INSTALLED) or not file.startswith(_STANDARD)), ""
    )
    if made_by.startswith(TESTS):
        return False
    any_ours = False
    for frame, file in zip(frames, files, strict=True):
        if file.startswith(OURS):
            any_ours = True
            if frame.f_code.co_flags & _ASYNCHRONOUS:
                return True
        elif file.startswith(TESTS):
            return False
    return any_ours


def _is_in(frames: Sequence[FrameType], functions: Sequence[tuple[str, Any]]) -> bool:
    return any(
        frame.f_code.co_name in names and frame.f_code.co_filename.endswith(file)
        for frame in frames
        for file, names in functions
    )


def _is_excused(frames: Sequence[FrameType], call: str) -> bool:
    ours = {
        (frame.f_code.co_filename.removeprefix(OURS), frame.f_code.co_name)
        for frame in frames
        if frame.f_code.co_filename.startswith(OURS)
    }
    return any(
        call.startswith(one.calls)
        and any(
            file.startswith(one.file) if one.file.endswith("/") else (file, name) == (one.file, one.function)
            for file, name in ours
        )
        for one in EXCUSES
    )


def _told(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
