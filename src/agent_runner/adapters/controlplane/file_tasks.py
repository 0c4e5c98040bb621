"""Tasks with files from our control plane, by one call for each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import grpc.aio

from agent_runner.client.channels import Channel
from agent_runner.client.errors import from_rpc
from agent_runner.errors import UnavailableError
from agent_runner.v1.runner_service_pb2 import ServeFilesRequest, ServeFilesResponse

if TYPE_CHECKING:
    Call = grpc.aio.StreamStreamCall[ServeFilesRequest, ServeFilesResponse]

_METHOD: Final = "/agent_runner.v1.RunnerService/ServeFiles"
_TO_BEGIN: Final = timedelta(seconds=10)
_SILENCE: Final = timedelta(seconds=90)
"""Longest wait for the next piece; the control plane gives up on slow people earlier."""


class GrpcFileTasks:
    """`FileTasks` by `agent_runner.v1.RunnerService`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @asynccontextmanager
    async def open(self, task_id: str) -> AsyncIterator[GrpcFileTask]:
        call = self._channel.converse(_METHOD, ServeFilesResponse)
        try:
            line = _Line(call, self._channel.address)
            await line.send(ServeFilesRequest(task_id=task_id), _TO_BEGIN)
            order = await line.receive(_TO_BEGIN)
            if order is None:
                raise UnavailableError("Nobody waits for this task any more.")
            yield GrpcFileTask(order, line)
        finally:
            call.cancel()


class GrpcFileTask:
    """`FileTask` over an open call."""

    def __init__(self, order: ServeFilesResponse, line: _Line) -> None:
        self._order = order
        self._line = line

    @property
    def order(self) -> ServeFilesResponse:
        return self._order

    async def send(self, part: ServeFilesRequest) -> None:
        await self._line.send(part, _SILENCE)
        if part.WhichOneof("part") not in ("chunk", "ready"):
            await self._line.close(_SILENCE)

    async def chunks(self) -> AsyncIterator[bytes]:
        while (part := await self._line.receive(_SILENCE)) is not None:
            if part.HasField("done"):
                return
            yield part.chunk
        raise UnavailableError("The upload was broken off.")


class _Line:
    """A call in both directions, whose ends are our errors."""

    def __init__(self, call: Call, address: str) -> None:
        self._call = call
        self._address = address

    async def send(self, part: ServeFilesRequest, patience: timedelta) -> None:
        try:
            async with asyncio.timeout(patience.total_seconds()):
                await self._call.write(part)
        except (asyncio.InvalidStateError, TimeoutError) as error:
            raise UnavailableError("Nobody waits for this task any more.") from error
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self._address) from error

    async def receive(self, patience: timedelta) -> ServeFilesResponse | None:
        """The next message; None at the end."""
        try:
            async with asyncio.timeout(patience.total_seconds()):
                part = await self._call.read()
        except TimeoutError as error:
            raise UnavailableError("The control plane went silent.") from error
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self._address) from error
        return part if isinstance(part, ServeFilesResponse) else None

    async def close(self, patience: timedelta) -> None:
        """Say that nothing more comes, and wait until the control plane has taken everything."""
        try:
            async with asyncio.timeout(patience.total_seconds()):
                await self._call.done_writing()
                await self._call.code()
        except (asyncio.InvalidStateError, TimeoutError, grpc.aio.AioRpcError):
            # What was said cannot be said again.
            return
