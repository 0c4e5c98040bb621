"""Tasks with files: who comes for none."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from unit.services.conftest import World

from agent_runner.errors import NotFoundError
from agent_runner.services.container import Services
from agent_runner.services.workspaces import WorkspaceService
from agent_runner.v1.runner_service_pb2 import ServeFilesRequest, ServeFilesResponse


class SilentLine:
    """A caller that says nothing."""

    async def receive(self) -> ServeFilesRequest | None:
        await asyncio.Event().wait()
        raise AssertionError("never")

    async def send(self, part: ServeFilesResponse) -> None:
        raise AssertionError("nothing is for it")


async def test_who_names_no_task_is_told_so_after_a_while(world: World, services: Services) -> None:
    workspaces = WorkspaceService(services.sessions, world.workflows, to_come=timedelta(milliseconds=10))
    with pytest.raises(NotFoundError, match="Nobody waits"):
        await workspaces.serve(SilentLine())
