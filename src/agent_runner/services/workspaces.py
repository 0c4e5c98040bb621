"""Files of sessions. They are with a runner, who is asked to come for each task and is told it then.

Bytes go from one call to the other as fast as the slower side takes them; none are kept here.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Protocol, TypeVar

import structlog

from agent_runner.errors import (
    AgentRunnerError,
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from agent_runner.ports.workflows import WorkflowStarter
from agent_runner.services.sessions import SessionService
from agent_runner.v1.runner_service_pb2 import (
    FilesDone,
    FilesFailure,
    ServeFilesRequest,
    ServeFilesResponse,
)
from agent_runner.v1.workspace_service_pb2 import (
    DownloadFileRequest,
    ListFilesRequest,
    ListFilesResponse,
    UploadFileHeader,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")

TO_COME: Final = timedelta(seconds=10)
"""How long a runner may take to come for a task."""
SILENCE: Final = timedelta(seconds=60)
"""How long a runner may say nothing, such as while a container starts."""
_MOST_AT_ONCE: Final = 200
_LOST: Final = "The runner that held the files went away. Try again."


class RunnerLine(Protocol):
    """The call of a runner that came for a task."""

    async def receive(self) -> ServeFilesRequest | None:
        """What it says next; None when it has gone."""
        ...

    async def send(self, part: ServeFilesResponse) -> None:
        """
        Raises:
            UnavailableError: it has gone.
        """
        ...


@dataclass(slots=True)
class _Task:
    """A task somebody waits for.

    Attributes:
        line: the runner, when one has come.
        finished: nobody waits any more, however it ended.
        lost: the runner has gone.
    """

    order: ServeFilesResponse
    line: asyncio.Future[RunnerLine]
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    lost: asyncio.Event = field(default_factory=asyncio.Event)


class WorkspaceService:
    """Lists, reads and writes files of sessions, by runners."""

    def __init__(
        self, sessions: SessionService, workflows: WorkflowStarter, *, to_come: timedelta = TO_COME
    ) -> None:
        self._sessions = sessions
        self._workflows = workflows
        self._to_come = to_come.total_seconds()
        self._waiting: dict[str, _Task] = {}
        self._open = 0

    @property
    def open(self) -> int:
        """How many tasks somebody waits for now."""
        return self._open

    async def list(self, request: ListFilesRequest) -> ListFilesResponse:
        """One page of a directory.

        Raises:
            NotFoundError: no such session or directory, or the session has no sandbox yet.
            InvalidRequestError: the path leaves the session's files or is no directory.
            UnavailableError: no runner came, or it went away.
        """
        async with self._runner(request.session_id, ServeFilesResponse(list=request)) as task:
            return (await _said(task)).listing

    async def download(self, request: DownloadFileRequest) -> AsyncIterator[bytes]:
        """Stream a regular file; raises as `list` does."""
        async with self._runner(request.session_id, ServeFilesResponse(download=request)) as task:
            while not (part := await _said(task)).HasField("done"):
                yield part.chunk

    async def upload(
        self, header: UploadFileHeader, chunks: AsyncIterator[bytes], on_ready: Callable[[], Awaitable[None]]
    ) -> int:
        """Write a file whole or not at all, and return its size; raises as `list` and `chunks` do.

        Args:
            on_ready: called when the path is found to be good, before the first chunk is asked for.

        Raises:
            FailedPreconditionError: there is no space left.
        """
        async with self._runner(header.session_id, ServeFilesResponse(upload=header)) as task:
            await _said(task)
            await on_ready()
            sending = asyncio.ensure_future(_send_all(task.line.result(), chunks))
            # The runner may give up before everything is sent.
            answer = asyncio.ensure_future(_said(task, silence=None))
            try:
                await asyncio.wait({sending, answer}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    await sending
                async with asyncio.timeout(SILENCE.total_seconds()):
                    return (await answer).done.size_bytes
            except TimeoutError:
                raise UnavailableError(_LOST) from None
            finally:
                sending.cancel()
                answer.cancel()
                await asyncio.gather(sending, answer, return_exceptions=True)

    async def serve(self, line: RunnerLine) -> None:
        """Let a runner that has come do its task; returns when nobody waits for it any more.

        Raises:
            NotFoundError: nobody waits for the task it names, or it names none in time.
        """
        first = None
        with suppress(TimeoutError):
            async with asyncio.timeout(self._to_come):
                first = await line.receive()
        task = self._waiting.pop(first.task_id, None) if first is not None else None
        if task is None or task.line.done():
            raise NotFoundError("Task with files", "", "Nobody waits for it any more.")
        try:
            await line.send(task.order)
            task.line.set_result(line)
            await task.finished.wait()
        finally:
            task.lost.set()

    @asynccontextmanager
    async def _runner(self, session_id: str, order: ServeFilesResponse) -> AsyncIterator[_Task]:
        """The task, with a runner that has come for it."""
        await self._sessions.get(session_id)
        if self._open >= _MOST_AT_ONCE:
            raise UnavailableError(f"{_MOST_AT_ONCE} transfers of files go on already. Try again later.")
        # Whoever knows the id gets the task, so nobody must be able to guess it.
        task_id = secrets.token_urlsafe(24)
        task = _Task(order, asyncio.get_running_loop().create_future())
        self._waiting[task_id] = task
        self._open += 1
        try:
            await self._workflows.ask_for_files(task_id)
            try:
                async with asyncio.timeout(self._to_come):
                    await task.line
            except TimeoutError:
                raise UnavailableError(
                    f"No runner came for the session's files within {self._to_come:g} s. "
                    "Check that one runs and is not busy with as many executions as it takes."
                ) from None
            yield task
        finally:
            self._open -= 1
            self._waiting.pop(task_id, None)
            task.line.cancel()
            task.finished.set()


async def _send_all(line: RunnerLine, chunks: AsyncIterator[bytes]) -> None:
    size = 0
    async for chunk in chunks:
        await _within(line.send(ServeFilesResponse(chunk=chunk)))
        size += len(chunk)
    await line.send(ServeFilesResponse(done=FilesDone(size_bytes=size)))


async def _said(task: _Task, *, silence: timedelta | None = SILENCE) -> ServeFilesRequest:
    """What the runner says next.

    Raises:
        AgentRunnerError: it could not do the task, or has gone.
    """
    reading = asyncio.ensure_future(task.line.result().receive())
    losing = asyncio.ensure_future(task.lost.wait())
    limit = None if silence is None else silence.total_seconds()
    try:
        await asyncio.wait({reading, losing}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        part = reading.result() if reading.done() else None
    finally:
        losing.cancel()
        reading.cancel()
    if part is None:
        raise UnavailableError(_LOST)
    if part.HasField("failure"):
        raise _error(part.failure)
    return part


async def _within(work: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(SILENCE.total_seconds()):
            return await work
    except TimeoutError:
        raise UnavailableError(_LOST) from None


def _error(failure: FilesFailure) -> AgentRunnerError:
    """Our error, in the words of the runner."""
    if failure.reason == "InvalidRequest":
        return InvalidRequestError.of("path", failure.text)
    if failure.reason == "FailedPrecondition":
        return FailedPreconditionError(failure.text)
    if failure.reason == "NotFound":
        error = NotFoundError("", "")
        error.args = (failure.text,)
        return error
    return UnavailableError(failure.text)
