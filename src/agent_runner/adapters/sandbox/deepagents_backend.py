"""The one deepagents backend over the `Sandbox` port, whatever kind is behind it."""

from __future__ import annotations

import asyncio
import base64
import codecs
import io
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

from deepagents.backends.protocol import (
    DeleteResult,
    EditResult,
    ExecuteResponse,
    FileData,
    FileDownloadResponse,
    FileUploadResponse,
    GlobResult,
    GrepResult,
    LsResult,
    ReadResult,
    WriteResult,
)
from deepagents.backends.sandbox import BaseSandbox
from deepagents.backends.utils import (
    EMPTY_OLD_STRING_ERROR,
    _get_backend_read_file_type,
    normalize_read_bounds,
)

from agent_runner.ports.sandboxes import FileProblem, OnOutput, Sandbox

T = TypeVar("T")

DEFAULT_TIMEOUT = timedelta(minutes=2)
_PAGE_BYTES = 500 * 1024
_WHOLE_FILE = 4 << 20
"""Larger files are paged inside the sandbox instead of being fetched for every page."""
_TRUNCATED = "\n\n[The page was cut at 500 KiB. Go on with a larger offset or a smaller limit.]"
_EMPTY = "System reminder: File exists but has empty contents"

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
"""Set while a file tool runs scripts of its own: their output is not for watchers."""


class SandboxBackend(BaseSandbox):
    """deepagents' file tools and `execute` over a `Sandbox`.

    Reading, writing and editing go by `get` and `put`, which spare starting processes; listing and
    searching run deepagents' scripts inside. To be made on the event loop that uses it.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        on_output: Callable[[str], None] | None = None,
        timeout: timedelta = DEFAULT_TIMEOUT,
        output_limit: int = 1 << 20,
    ) -> None:
        """`on_output` gets what the `execute` tool prints while it runs; `timeout` is its default."""
        self._sandbox = sandbox
        self._on_output: OnOutput | None = on_output
        self._timeout = timeout
        self._output_limit = output_limit
        self._loop = asyncio.get_running_loop()

    @property
    def id(self) -> str:
        return self._sandbox.id

    def use(self, sandbox: Sandbox) -> None:
        """Work with another sandbox from now on; nothing may run in the one before."""
        self._sandbox = sandbox

    async def aexecute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        quiet = _quiet.get()
        result = await self._sandbox.exec(
            command,
            timeout=self._timeout if timeout is None else timedelta(seconds=timeout),
            on_output=None if quiet else self._on_output,
            # Listings and pages must come whole or not at all.
            output_limit=max(self._output_limit, 16 << 20) if quiet else self._output_limit,
        )
        output = _joined(result.stdout, result.stderr)
        if result.timed_out:
            output += (
                f"\n[The command was ended after {timeout or int(self._timeout.total_seconds())} seconds.]"
            )
        return ExecuteResponse(output=output, exit_code=result.code, truncated=result.truncated)

    async def aupload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        problems = await self._sandbox.put(files)
        return [
            FileUploadResponse(path=path, error=_word(problem))
            for (path, _), problem in zip(files, problems, strict=True)
        ]

    async def adownload_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        found = await self._sandbox.get(paths)
        return [
            FileDownloadResponse(path=path, content=content, error=_word(problem))
            for path, (content, problem) in zip(paths, found, strict=True)
        ]

    async def aread(self, file_path: str, offset: int = 0, limit: int = 2000) -> ReadResult:
        content, problem = (await self._sandbox.get([file_path], limit=_WHOLE_FILE))[0]
        if content is None:
            # Too large to fetch, or a file of the system's, which only commands can read.
            if problem in (FileProblem.TOO_LARGE, FileProblem.DENIED):
                with _quietly():
                    return await super().aread(file_path, offset, limit)
            return ReadResult(error=f"File '{file_path}': {_word(problem)}")
        return _page(file_path, content, offset, limit)

    async def awrite(self, file_path: str, content: str) -> WriteResult:
        problem = (await self._sandbox.put([(file_path, content.encode("utf-8", "replace"))]))[0]
        if problem is not None:
            return WriteResult(error=f"Failed to write file '{file_path}': {_word(problem)}")
        return WriteResult(path=file_path)

    async def aedit(
        self, file_path: str, old_string: str, new_string: str, replace_all: bool = False
    ) -> EditResult:
        if not old_string:
            return EditResult(error=EMPTY_OLD_STRING_ERROR)
        content, problem = (await self._sandbox.get([file_path], limit=_WHOLE_FILE))[0]
        if content is None:
            if problem in (FileProblem.TOO_LARGE, FileProblem.DENIED):
                with _quietly():
                    return await super().aedit(file_path, old_string, new_string, replace_all)
            return EditResult(error=_edit_error(problem, file_path))
        try:
            edited, count = _replaced(content.decode("utf-8"), old_string, new_string, replace_all)
        except UnicodeDecodeError:
            return EditResult(error=f"Error: File '{file_path}' is not a text file")
        if count == 0:
            return EditResult(error=f"Error: String not found in file: '{old_string}'")
        if edited is None:
            return EditResult(
                error=f"Error: String '{old_string}' appears multiple times. "
                "Use replace_all=True to replace all occurrences."
            )
        problem = (await self._sandbox.put([(file_path, edited.encode("utf-8", "replace"))]))[0]
        if problem is not None:
            return EditResult(error=_edit_error(problem, file_path))
        return EditResult(path=file_path, occurrences=count)

    async def als(self, path: str) -> LsResult:
        with _quietly():
            return await super().als(path)

    async def agrep(
        self, pattern: str, path: str | None = None, glob: str | None = None, *, max_count: int | None = None
    ) -> GrepResult:
        with _quietly():
            return await super().agrep(pattern, path, glob, max_count=max_count)

    async def aglob(self, pattern: str, path: str | None = None) -> GlobResult:
        with _quietly():
            return await super().aglob(pattern, path)

    async def adelete(self, file_path: str) -> DeleteResult:
        with _quietly():  # to_thread, by which the base calls `delete`, takes this along
            return await super().adelete(file_path)

    def execute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        return self._wait(self.aexecute(command, timeout=timeout))

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        return self._wait(self.aupload_files(files))

    def download_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        return self._wait(self.adownload_files(paths))

    def read(self, file_path: str, offset: int = 0, limit: int = 2000) -> ReadResult:
        return self._wait(self.aread(file_path, offset, limit))

    def write(self, file_path: str, content: str) -> WriteResult:
        return self._wait(self.awrite(file_path, content))

    def edit(self, file_path: str, old_string: str, new_string: str, replace_all: bool = False) -> EditResult:
        return self._wait(self.aedit(file_path, old_string, new_string, replace_all))

    def ls(self, path: str) -> LsResult:
        return self._wait(self.als(path))

    def grep(
        self, pattern: str, path: str | None = None, glob: str | None = None, *, max_count: int | None = None
    ) -> GrepResult:
        return self._wait(self.agrep(pattern, path, glob, max_count=max_count))

    def glob(self, pattern: str, path: str | None = None) -> GlobResult:
        return self._wait(self.aglob(pattern, path))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work on the sandbox's event loop, and wait for it on this thread.

        Raises:
            RuntimeError: called on the loop's own thread, which would wait for itself.
        """
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            work.close()
            raise RuntimeError("On the event loop, use the method whose name begins with `a`.")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


@contextmanager
def _quietly() -> Iterator[None]:
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def _joined(stdout: bytes, stderr: bytes) -> str:
    out, err = (data.decode("utf-8", "replace") for data in (stdout, stderr))
    return out + ("\n" if out and err and not out.endswith("\n") else "") + err


def _word(problem: FileProblem | None) -> str | None:
    return None if problem is None else problem.value


def _edit_error(problem: FileProblem | None, file_path: str) -> str:
    if problem is FileProblem.NOT_FOUND:
        return f"Error: File '{file_path}' not found"
    return f"Error editing file '{file_path}': {_word(problem)}"


def _replaced(text: str, old: str, new: str, replace_all: bool) -> tuple[str | None, int]:
    """The text with `old` replaced, and how often; no text where `old` is there more than once.

    Pages show LF for CRLF, so what the model sends back is tried as it is, with CRLF and with LF.
    """
    lf_old, lf_new = old.replace("\r\n", "\n"), new.replace("\r\n", "\n")
    crlf_old, crlf_new = lf_old.replace("\n", "\r\n"), lf_new.replace("\n", "\r\n")
    for wanted, by in ((old, new), (crlf_old, crlf_new), (lf_old, lf_new)):
        if count := text.count(wanted):
            if count > 1 and not replace_all:
                return None, count
            return text.replace(wanted, by), count
    return text, 0


def _page(file_path: str, content: bytes, offset: int, limit: int) -> ReadResult:
    """One page of a file, as deepagents' own script cuts it."""
    if not content:
        return ReadResult(file_data=FileData(content=_EMPTY, encoding="utf-8"))
    if _get_backend_read_file_type(file_path) != "text":
        if len(content) > _PAGE_BYTES:
            return ReadResult(
                error=f"File '{file_path}': Binary file exceeds maximum preview size of {_PAGE_BYTES} bytes"
            )
        return _binary(content)
    try:
        # The first bytes decide; a character cut off at their end does not count against it.
        codecs.getincrementaldecoder("utf-8")().decode(content[:8192])
    except UnicodeDecodeError:
        return _binary(content)
    offset, limit = normalize_read_bounds(offset, limit)
    if limit <= 0:
        return ReadResult(file_data=FileData(content="", encoding="utf-8"), no_lines_requested=True)
    lines = [line.rstrip("\n") for line in io.StringIO(content.decode("utf-8", "replace"), newline=None)]
    if offset >= len(lines):
        return ReadResult(
            error=f"File '{file_path}': Line offset {offset} exceeds file length ({len(lines)} lines)"
        )
    text, shown = _fit(lines[offset : offset + limit])
    end = offset + shown
    return ReadResult(
        file_data=FileData(content=text, encoding="utf-8"),
        total_lines=len(lines),
        start_line=offset + 1,
        end_line=end,
        next_offset=end if end < len(lines) else None,
    )


def _fit(lines: list[str]) -> tuple[str, int]:
    """As many lines as fit in a page, and how many; at least part of one, so that reading gets on."""
    room = _PAGE_BYTES - len(_TRUNCATED)
    for count, line in enumerate(lines):
        size = len(line.encode("utf-8", "replace")) + 1
        if size > room:
            rest = line.encode("utf-8", "replace")[:room].decode("utf-8", "ignore")
            return "\n".join([*lines[:count], rest]) + _TRUNCATED, max(count, 1)
        room -= size
    return "\n".join(lines), len(lines)


def _binary(content: bytes) -> ReadResult:
    return ReadResult(
        file_data=FileData(content=base64.b64encode(content).decode("ascii"), encoding="base64")
    )
