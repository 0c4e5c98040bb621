from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import cast

from structlog.testing import capture_logs
from temporalio.client import Client

from agent_runner.adapters.temporal.connection import TemporalConnection
from agent_runner.errors import WorkflowServiceUnavailableError


class Away(TemporalConnection):
    """Answers after some calls, as a Temporal that is started later."""

    def __init__(self, calls: int) -> None:
        super().__init__("127.0.0.1:9", environ={})
        self.calls = calls

    async def client(self, timeout: timedelta = timedelta(seconds=4)) -> Client:
        self.calls -= 1
        if self.calls >= 0:
            raise WorkflowServiceUnavailableError(self.address) from TimeoutError("nobody")
        return cast("Client", None)


async def test_one_wait_for_temporal_is_told_once() -> None:
    with capture_logs() as lines:
        async with asyncio.timeout(120):
            await Away(3).wait()

    told = [line["log_level"] for line in lines if line["event"] == "waiting for Temporal"]
    assert told == ["warning", "debug", "debug"]
