"""`agent_runner.v1.WorkspaceService`, and the runners' side of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final

import grpc

from agent_runner.controlplane._calls import Context, guarded
from agent_runner.controlplane._rpc import Deliver
from agent_runner.controlplane._uploads import chunks_of, drain, header_of, parsed, parts_of
from agent_runner.errors import (
    FailedPreconditionError,
    SlowWatcherError,
    UnavailableError,
)
from agent_runner.services.validation import validate
from agent_runner.services.workspaces import WorkspaceService
from agent_runner.v1 import runner_service_pb2, workspace_service_pb2
from agent_runner.v1.runner_service_pb2 import ServeFilesRequest, ServeFilesResponse
from agent_runner.v1.workspace_service_pb2 import (
    DownloadFileRequest,
    DownloadFileResponse,
    ListFilesRequest,
    ListFilesResponse,
    UploadFileRequest,
    UploadFileResponse,
)

_SERVICE: Final = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"].full_name
_RUNNERS: Final = runner_service_pb2.DESCRIPTOR.services_by_name["RunnerService"].full_name
_READY: Final = ("agent-runner-upload", "ready")
"""As in the API's comment: what the headers have once the path is found to be good."""


class WorkspaceController:
    """Files of sessions."""

    def __init__(self, workspaces: WorkspaceService) -> None:
        self._workspaces = workspaces

    async def list(self, request: ListFilesRequest) -> ListFilesResponse:
        validate(request)
        return await self._workspaces.list(request)

    async def download(self, request: DownloadFileRequest, deliver: Deliver) -> None:
        validate(request)
        async with aclosing(self._workspaces.download(request)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                try:
                    await deliver(DownloadFileResponse(chunk=chunk).SerializeToString(), 0)
                except SlowWatcherError:
                    raise UnavailableError("The download paused for too long. Begin again.") from None

    async def upload(self, requests: AsyncIterator[bytes], context: Context) -> UploadFileResponse:
        parts = parts_of(requests, UploadFileRequest)
        header = await header_of(parts)

        async def ready() -> None:
            await context.send_initial_metadata((_READY,))

        try:
            size = await self._workspaces.upload(header, chunks_of(parts), ready)
        except (FailedPreconditionError, UnavailableError):
            await drain(requests)
            raise
        return UploadFileResponse(size_bytes=size)

    def handlers(self) -> Sequence[grpc.GenericRpcHandler]:
        """The handlers of the methods that take streams."""

        async def upload(requests: AsyncIterator[bytes], context: Context) -> bytes:
            return (await self.upload(requests, context)).SerializeToString()

        async def serve(_requests: AsyncIterator[bytes], context: Context) -> None:
            await self._workspaces.serve(_Line(context))

        uploading: Any = guarded(f"/{_SERVICE}/UploadFile", upload)  # type: ignore[arg-type]
        serving: Any = guarded(f"/{_RUNNERS}/ServeFiles", serve)  # type: ignore[arg-type]
        taken: grpc.RpcMethodHandler[Any, Any] = grpc.stream_unary_rpc_method_handler(uploading)
        both: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(serving)
        return [
            grpc.method_handlers_generic_handler(_SERVICE, {"UploadFile": taken}),
            grpc.method_handlers_generic_handler(_RUNNERS, {"ServeFiles": both}),
        ]


class _Line:
    """A runner's call."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def receive(self) -> ServeFilesRequest | None:
        try:
            raw: Any = await self._context.read()
        except grpc.aio.UsageError:  # the call has ended
            return None
        return None if raw is grpc.aio.EOF else parsed(ServeFilesRequest, raw)

    async def send(self, part: ServeFilesResponse) -> None:
        try:
            await self._context.write(part.SerializeToString())
        except grpc.aio.UsageError:
            raise UnavailableError("The runner has gone.") from None
