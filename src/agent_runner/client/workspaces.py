"""Files of a session's workspace: listed, downloaded and uploaded, of any size."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import grpc
import grpc.aio

from agent_runner.client.channels import Channel
from agent_runner.client.errors import DeadlineError, from_rpc

if TYPE_CHECKING:
    from agent_runner.v1.workspace_service_pb2 import UploadFileRequest, WorkspaceFile

PIECE: Final = 256 << 10
"""Bytes of one message of an upload; at most 1 MiB are taken."""
_SERVICE: Final = "/agent_runner.v1.WorkspaceService"
_DEADLINE: Final = timedelta(minutes=2)
_UPLOAD: Final = timedelta(hours=12)
_SILENCE: Final = timedelta(minutes=2)


class Workspaces:
    """Files of sessions, by session id. Paths are absolute in the sandbox, or relative to `/workspace`.

    All methods raise:
        NotFoundError: no such session, file or directory; or the session has no sandbox yet.
        InvalidRequestError: the path leaves the session's files, or is not of the right kind.
        UnavailableError: no runner came for it within 10 s, or it went away.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def files(
        self, session_id: str, path: str = "/workspace", *, limit: int = 0
    ) -> AsyncIterator[WorkspaceFile]:
        """What is in a directory, by name; 0 for all of it."""
        from agent_runner.v1.workspace_service_pb2 import ListFilesRequest, ListFilesResponse

        request = ListFilesRequest(session_id=session_id, path=path, page_size=min(limit, 1000))
        count = 0
        while True:
            method = f"{_SERVICE}/ListFiles"
            page = await self._channel.unary(method, request, ListFilesResponse, timeout=_DEADLINE)
            for file in page.files:
                yield file
                count += 1
                if count == limit:
                    return
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def download(self, session_id: str, path: str) -> AsyncIterator[bytes]:
        """Stream a regular file; it is whole when the iterator ends without an error."""
        from agent_runner.v1.workspace_service_pb2 import DownloadFileRequest, DownloadFileResponse

        request = DownloadFileRequest(session_id=session_id, path=path)
        method = f"{_SERVICE}/DownloadFile"
        try:
            async for answer in self._channel.stream(method, request, DownloadFileResponse, silence=_SILENCE):
                yield answer.chunk
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self._channel.address) from error
        except TimeoutError as error:
            raise DeadlineError(self._channel.address) from error

    async def upload(self, session_id: str, path: str, chunks: AsyncIterator[bytes]) -> int:
        """Write a file whole or not at all, with the directories above it; returns its size.

        Args:
            chunks: the file in pieces of at most 1 MiB. What it raises breaks the upload off.

        Raises:
            FailedPreconditionError: there is no space left.
        """
        from agent_runner.v1.workspace_service_pb2 import (
            UploadFileHeader,
            UploadFileRequest,
            UploadFileResponse,
        )

        async def requests() -> AsyncIterator[UploadFileRequest]:
            yield UploadFileRequest(header=UploadFileHeader(session_id=session_id, path=path))
            async for chunk in chunks:
                yield UploadFileRequest(chunk=chunk)

        method = f"{_SERVICE}/UploadFile"
        answer = await self._channel.upload(
            method, requests(), UploadFileResponse, timeout=_UPLOAD, ask_first=True
        )
        return answer.size_bytes
