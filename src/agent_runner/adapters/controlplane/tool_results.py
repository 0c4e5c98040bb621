"""Results of tools, kept by our control plane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from typing import Final

from agent_runner.client.channels import Channel
from agent_runner.client.errors import UnsupportedError
from agent_runner.client.executions import Executions
from agent_runner.errors import ConflictError, FencedError
from agent_runner.ports.tool_results import ResultToKeep
from agent_runner.v1.runner_service_pb2 import (
    UploadToolResultHeader,
    UploadToolResultRequest,
    UploadToolResultResponse,
)

_UPLOAD: Final = "/agent_runner.v1.RunnerService/UploadToolResult"
_DEADLINE: Final = timedelta(minutes=2)
"""For 64 MiB; a tool waits for it."""


class GrpcToolResults:
    """`ToolResults` by `agent_runner.v1`; a server of the Stigmer API alone does not know the calls."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._executions = Executions(channel, org="")

    async def put(self, result: ResultToKeep, pieces: Iterable[bytes]) -> str:
        header = UploadToolResultHeader(
            execution_id=result.execution_id,
            attempt=result.attempt,
            token=result.token,
            tool_call_id=result.tool_call_id,
            size_bytes=result.size,
            sha256=result.sha256,
        )

        async def requests() -> AsyncIterator[UploadToolResultRequest]:
            yield UploadToolResultRequest(header=header)
            source = iter(pieces)
            # Masking a piece takes milliseconds, which other turns' tokens would wait for.
            while (piece := await asyncio.to_thread(next, source, None)) is not None:
                yield UploadToolResultRequest(chunk=piece)

        try:
            answer = await self._channel.upload(
                _UPLOAD, requests(), UploadToolResultResponse, timeout=_DEADLINE
            )
        except UnsupportedError:
            return ""
        except ConflictError as error:
            raise FencedError(result.execution_id, result.attempt, result.attempt + 1) from error
        return answer.artifact_key

    def get(self, execution_id: str, tool_call_id: str) -> AsyncIterator[bytes]:
        return self._executions.tool_result(execution_id, tool_call_id)
