"""A channel to a server in the same process."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Protocol

import grpc.aio
from google.protobuf.message import Message

from agent_runner.client.channels import UNARY_DEADLINE, Channel, M
from agent_runner.client.errors import DeadlineError, from_rpc


class Calls(Protocol):
    """What the server offers callers in its process."""

    def answers(self, method: str) -> bool:
        """Whether it takes this method directly."""
        ...

    async def call(self, method: str, request: bytes) -> bytes:
        """The serialized response.

        Raises:
            grpc.aio.AioRpcError: the status the call ended with.
        """
        ...


class LocalChannel(Channel):
    """Calls with one request and one response go to the server directly, all others over its address.

    A call over a socket costs both ends together about a millisecond of the one interpreter they share.
    """

    def __init__(self, calls: Calls, address: str, api_key: str | None = None) -> None:
        super().__init__(address, api_key)
        self._calls = calls

    async def unary(
        self,
        method: str,
        request: Message,
        response: type[M],
        *,
        timeout: timedelta = UNARY_DEADLINE,
        wait_for_server: bool = False,
    ) -> M:
        """See `Channel.unary`."""
        if not self._calls.answers(method):
            return await super().unary(
                method, request, response, timeout=timeout, wait_for_server=wait_for_server
            )
        limit = asyncio.timeout(timeout.total_seconds())
        try:
            async with limit:
                return response.FromString(await self._calls.call(method, request.SerializeToString()))
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self.address) from error
        except TimeoutError:
            if limit.expired():
                raise DeadlineError(self.address) from None
            raise
