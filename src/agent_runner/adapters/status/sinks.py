"""Which way to report follows from what the server knows."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import NoReturn

import structlog

from agent_runner.adapters.status.batches import BatchSettings
from agent_runner.adapters.status.native import NativeSinks
from agent_runner.adapters.status.spools import Spool
from agent_runner.adapters.status.stigmer import StigmerSinks
from agent_runner.client.channels import Channel
from agent_runner.client.errors import UnsupportedError
from agent_runner.ports.status_sinks import AttemptOf, Grant, StatusSink
from agent_runner.v1.server_service_pb2 import GetServerInfoRequest, GetServerInfoResponse

log = structlog.get_logger(__name__)

_INFO = "/agent_runner.v1.ServerService/GetServerInfo"


class NegotiatingSinks:
    """Asks the server once whether it knows `agent_runner.v1`; if not, it speaks the Stigmer API alone."""

    def __init__(
        self, channel: Channel, settings: BatchSettings | None = None, spool: Spool | None = None
    ) -> None:
        """The spool is for what cannot be sent; the Stigmer API has no use for it."""
        self._channel = channel
        self._settings = settings or BatchSettings()
        self._native = NativeSinks(channel, self._settings, spool)
        self._chosen: NativeSinks | StigmerSinks | None = None
        self._choosing = asyncio.Lock()

    async def open(self, attempt: AttemptOf) -> tuple[StatusSink, Grant]:
        return await (self._chosen or await self._choose()).open(attempt)

    async def deliver_left(self) -> NoReturn:
        await self._native.deliver_left()

    async def _choose(self) -> NativeSinks | StigmerSinks:
        async with self._choosing:
            if self._chosen is None:
                self._chosen = await self._ask()
                log.info(
                    "way to report chosen", sink=type(self._chosen).__name__, server=self._channel.address
                )
            return self._chosen

    async def _ask(self) -> NativeSinks | StigmerSinks:
        try:
            await self._channel.unary(
                _INFO, GetServerInfoRequest(), GetServerInfoResponse, timeout=timedelta(seconds=5)
            )
        except UnsupportedError:
            return StigmerSinks(self._channel, self._settings.events)
        return self._native
