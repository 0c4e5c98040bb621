"""Results of tools: kept for runners, streamed to who asks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import grpc

from agent_runner.controlplane._calls import Context, guarded
from agent_runner.controlplane._rpc import Deliver
from agent_runner.controlplane._uploads import chunks_of, drain, header_of, parts_of
from agent_runner.errors import AgentRunnerError, SlowWatcherError, UnavailableError
from agent_runner.services.tool_results import ToolResultService
from agent_runner.services.validation import validate
from agent_runner.v1 import runner_service_pb2
from agent_runner.v1.execution_service_pb2 import GetToolResultRequest, GetToolResultResponse
from agent_runner.v1.runner_service_pb2 import UploadToolResultRequest, UploadToolResultResponse

_RUNNERS: Final = runner_service_pb2.DESCRIPTOR.services_by_name["RunnerService"].full_name


class ToolResultController:
    """`RunnerService/UploadToolResult` and `ExecutionService/GetToolResult`."""

    def __init__(self, results: ToolResultService) -> None:
        self._results = results

    async def upload(self, requests: AsyncIterator[bytes]) -> UploadToolResultResponse:
        parts = parts_of(requests, UploadToolResultRequest)
        try:
            key = await self._results.keep(await header_of(parts), chunks_of(parts))
        except AgentRunnerError:
            await drain(requests)
            raise
        return UploadToolResultResponse(artifact_key=key)

    async def get(self, request: GetToolResultRequest, deliver: Deliver) -> None:
        validate(request)
        async with aclosing(self._results.read(request.execution_id, request.tool_call_id)) as chunks:
            async for chunk in chunks:
                try:
                    await deliver(GetToolResultResponse(chunk=chunk).SerializeToString(), 0)
                except SlowWatcherError:
                    raise UnavailableError("The reader paused for too long. Begin again.") from None

    def upload_handler(self) -> grpc.GenericRpcHandler:
        """The handler of `UploadToolResult`, which takes a stream."""

        async def behavior(requests: AsyncIterator[bytes], _context: Context) -> bytes:
            return (await self.upload(requests)).SerializeToString()

        handler: grpc.RpcMethodHandler[Any, Any]
        name = f"/{_RUNNERS}/UploadToolResult"
        handler = grpc.stream_unary_rpc_method_handler(guarded(name, behavior))  # type: ignore[arg-type]
        return grpc.method_handlers_generic_handler(_RUNNERS, {"UploadToolResult": handler})
