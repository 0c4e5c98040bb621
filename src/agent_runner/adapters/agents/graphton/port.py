"""Graphton's backend over the `Sandbox` port: what its tools and those of deepagents 0.4 call.

Graphton's own backends run on the host with the worker's environment, kill only the shell on a timeout
and lose lines over 64 KB; none of that is used.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

from graphton.core.backends.types import ExecutionResult

from agent_runner.adapters.agents.tool_calls import report_output
from agent_runner.ports.sandboxes import ExecResult, FileProblem, Sandbox

T = TypeVar("T")

_QUIET_LIMIT = 16 << 20
_WHOLE_FILE = 4 << 20
# Where deepagents 0.4 keeps what is too long for the model: at the root, which cannot be written.
_OFFLOADED = ("/large_tool_results", "/conversation_history")
_OFFLOADED_TO = "/tmp/agent-runner"  # noqa: S108 (in the sandbox)

_WORDS = {
    FileProblem.NOT_FOUND: "File not found: {}",
    FileProblem.DENIED: "Permission denied: {}",
    FileProblem.IS_DIRECTORY: "Is a directory, not a file: {}",
    FileProblem.INVALID_PATH: "Not a valid path: {}",
    FileProblem.TOO_LARGE: "Too large to be read whole, use commands: {}",
    FileProblem.NO_SPACE: "No space left for {}",
}

_problems: ContextVar[list[str] | None] = ContextVar("graphton_problems", default=None)


@contextmanager
def noting_problems() -> Iterator[list[str]]:
    """Gives a list that holds what went wrong in the backend: Graphton's tools tell it as success."""
    problems: list[str] = []
    token = _problems.set(problems)
    try:
        yield problems
    finally:
        _problems.reset(token)


class GraphtonPort:
    """The backend Graphton's tools see. To be made on the event loop that uses it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._loop = asyncio.get_running_loop()

    @property
    def id(self) -> str:
        return self._sandbox.id

    async def execute_streaming(
        self, command: str, timeout: int = 120, on_chunk: Callable[[str], None] | None = None
    ) -> ExecutionResult:
        """For the `execute` tool. What it prints is told by our own stream, so `on_chunk` is not called."""
        result = await self._sandbox.exec(
            command, timeout=timedelta(seconds=timeout), on_output=report_output
        )
        ended = f"\n[The command was ended after {timeout} seconds.]" if result.timed_out else ""
        return _converted(result, ended)

    def execute(self, command: str, timeout: int = 120, **_: Any) -> ExecutionResult:
        """For searches, on a thread; their output is not for watchers."""
        return _converted(self._wait(self._quiet(command, timeout)))

    def read(self, path: str) -> str:
        """The raw text. Raises OSError with the problem in words."""
        content, problem = self._wait(self._sandbox.get([_inside(path)], limit=_WHOLE_FILE))[0]
        if content is None:
            raise _failure(problem, path)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise _noted(ValueError(f"Not a text file: {path}")) from None

    def write(self, path: str, content: str) -> None:
        """Write whole, making parent directories. Raises OSError with the problem in words."""
        data = content.encode("utf-8", "replace")
        problem = self._wait(self._sandbox.put([(_inside(path), data)]))[0]
        if problem is not None:
            raise _failure(problem, path)

    def list_files(self, path: str = ".") -> list[str]:
        """Names in a directory."""
        return self._checked(f"ls -A1 -- {_quoted(path)}", path).splitlines()

    def is_directory(self, path: str) -> bool:
        return bool(self.execute(f"test -d {_quoted(path)}").exit_code == 0)

    def delete(self, path: str) -> None:
        self._checked(f"rm -- {_quoted(path)}", path)

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[Any]:
        from deepagents.backends.protocol import FileUploadResponse

        problems = self._wait(self._sandbox.put([(_inside(path), content) for path, content in files]))
        return [
            FileUploadResponse(path=path, error=_word(problem))
            for (path, _), problem in zip(files, problems, strict=True)
        ]

    def download_files(self, paths: list[str]) -> list[Any]:
        from deepagents.backends.protocol import FileDownloadResponse

        found = self._wait(self._sandbox.get([_inside(path) for path in paths]))
        return [
            FileDownloadResponse(path=path, content=content, error=_word(problem))
            for path, (content, problem) in zip(paths, found, strict=True)
        ]

    async def _quiet(self, command: str, timeout: int) -> ExecResult:
        return await self._sandbox.exec(
            command, timeout=timedelta(seconds=timeout), output_limit=_QUIET_LIMIT
        )

    def _checked(self, command: str, path: str) -> str:
        result = self.execute(command)
        if result.exit_code != 0:
            raise _noted(OSError(result.stderr.strip() or f"Not done: {path}"))
        return str(result.stdout)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work on the sandbox's event loop, and wait for it on this thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _converted(result: ExecResult, ended: str = "") -> ExecutionResult:
    out, err = (data.decode("utf-8", "replace") for data in (result.stdout, result.stderr))
    return ExecutionResult(exit_code=result.code, stdout=out, stderr=err + ended)


def _inside(path: str) -> str:
    return f"{_OFFLOADED_TO}{path}" if path.startswith(_OFFLOADED) else path


def _quoted(path: str) -> str:
    return shlex.quote(_inside(path))


def _failure(problem: FileProblem | None, path: str) -> OSError:
    words = _WORDS.get(problem, "{}") if problem else "{}"
    error: OSError = FileNotFoundError() if problem is FileProblem.NOT_FOUND else OSError()
    error = type(error)(words.format(path))
    _noted(error)
    return error


def _noted(error: Exception) -> Exception:
    problems = _problems.get()
    if problems is not None:
        problems.append(str(error))
    return error


def _word(problem: FileProblem | None) -> Any:
    return None if problem is None else problem.value
