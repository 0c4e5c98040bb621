"""Files of sessions, for people who look at them or bring some."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import cast

import structlog
from temporalio import activity

from agent_runner.errors import (
    AgentRunnerError,
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from agent_runner.ports.file_tasks import FileTask, FileTasks
from agent_runner.ports.sandboxes import FileEntry, SandboxProvider
from agent_runner.runner.failures import retry_contract, short
from agent_runner.runner.heartbeats import heartbeats
from agent_runner.runner.payloads import SERVE_FILES
from agent_runner.v1.runner_service_pb2 import FilesDone, FilesFailure, FilesReady, ServeFilesRequest
from agent_runner.v1.workspace_service_pb2 import (
    DownloadFileRequest,
    ListFilesRequest,
    ListFilesResponse,
    UploadFileHeader,
    WorkspaceFile,
)

log = structlog.get_logger(__name__)

_PIECE = 256 << 10
_MOST_FILES = 1000
_MOST_PAGE_BYTES = 900 << 10
_TOLD = (NotFoundError, InvalidRequestError, FailedPreconditionError)


class FileActivities:
    """Holds the provider of this worker's sandboxes, and where tasks come from."""

    def __init__(self, sandboxes: SandboxProvider, tasks: FileTasks | None) -> None:
        self._sandboxes = sandboxes
        self._tasks = tasks

    @activity.defn(name=SERVE_FILES)
    async def serve(self, task_id: str) -> None:
        """Do what somebody waits for; how it went is told there, not here.

        Raises:
            ApplicationError: the task could not be taken, as the control plane is away.
        """
        if self._tasks is None:
            log.warning("a task with files came to a runner that takes none")
            return
        async with heartbeats():
            with retry_contract():
                try:
                    async with self._tasks.open(task_id) as task:
                        await self._told(task)
                except NotFoundError:
                    log.info("nobody waits for the task with files any more")

    async def _told(self, task: FileTask) -> None:
        try:
            try:
                outcome = await self._done(task)
            except AgentRunnerError as error:
                outcome = ServeFilesRequest(failure=_failure(error))
            await task.send(outcome)
        except UnavailableError as error:
            log.info("a task with files was broken off", reason=str(error))

    async def _done(self, task: FileTask) -> ServeFilesRequest:
        kind = task.order.WhichOneof("part")
        if kind == "list":
            return ServeFilesRequest(listing=await self._list(task.order.list))
        if kind == "download":
            size = await self._read(task.order.download, task)
        elif kind == "upload":
            size = await self._write(task.order.upload, task)
        else:
            raise UnavailableError("The runner is older than the control plane and does not know this task.")
        return ServeFilesRequest(done=FilesDone(size_bytes=size))

    async def _list(self, request: ListFilesRequest) -> ListFilesResponse:
        workspace = self._sandboxes.workspace(request.session_id)
        entries = await workspace.list(request.path or "/workspace")
        return page_of(entries, request.page_token, request.page_size or _MOST_FILES)

    async def _read(self, request: DownloadFileRequest, task: FileTask) -> int:
        size = 0
        chunks = self._sandboxes.workspace(request.session_id).read(request.path, chunk_size=_PIECE)
        # An asynchronous generator, whatever the kind; left on the way, it must close its file.
        async with aclosing(cast("AsyncGenerator[bytes]", chunks)) as pieces:
            async for piece in pieces:
                await task.send(ServeFilesRequest(chunk=piece))
                size += len(piece)
        return size

    async def _write(self, request: UploadFileHeader, task: FileTask) -> int:
        return await self._sandboxes.workspace(request.session_id).write(request.path, _asked_for(task))


async def _asked_for(task: FileTask) -> AsyncIterator[bytes]:
    """The chunks of an upload. The first is asked for when the file is open, and then they may come."""
    await task.send(ServeFilesRequest(ready=FilesReady()))
    async for chunk in task.chunks():
        yield chunk


def page_of(entries: Sequence[FileEntry], after: str, most: int) -> ListFilesResponse:
    """The page of a directory that follows the path `after`; it stays below 1 MiB."""
    page, size = ListFilesResponse(), 0
    for entry in entries:
        path = entry.path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if after and path <= after:
            continue
        size += len(path.encode()) + 32
        if page.files and (len(page.files) >= most or size > _MOST_PAGE_BYTES):
            page.next_page_token = page.files[-1].path
            return page
        file = WorkspaceFile(path=path, directory=entry.is_dir, size_bytes=entry.size)
        file.modified_at.FromNanoseconds(int(entry.modified * 1_000_000) * 1000)
        page.files.append(file)
    return page


def _failure(error: AgentRunnerError) -> FilesFailure:
    reason = next((kind for kind in _TOLD if isinstance(error, kind)), UnavailableError)
    text = error.violations[0].problem if isinstance(error, InvalidRequestError) else str(error)
    return FilesFailure(reason=reason.__name__.removesuffix("Error"), text=short(text))
