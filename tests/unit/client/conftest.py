from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from unit.client.small_server import SmallServer

from agent_runner.client import AgentRunner


@pytest.fixture
async def server() -> AsyncIterator[SmallServer]:
    server = SmallServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def client(server: SmallServer) -> AsyncIterator[AgentRunner]:
    async with AgentRunner(server.address) as client:
        yield client
