"""Tasks with the files of sessions, as a runner gets them from the control plane."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from agent_runner.v1.runner_service_pb2 import ServeFilesRequest, ServeFilesResponse


class FileTask(Protocol):
    """One task, while somebody waits for it."""

    @property
    def order(self) -> ServeFilesResponse:
        """What is to be done: `list`, `download` or `upload`."""
        ...

    async def send(self, part: ServeFilesRequest) -> None:
        """Send a part of the outcome; waits while whoever gets it is slow.

        Raises:
            UnavailableError: nobody waits any more.
        """
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The bytes of an upload, to its end.

        Raises:
            UnavailableError: it was broken off.
        """
        ...


class FileTasks(Protocol):
    """Where tasks come from."""

    def open(self, task_id: str) -> AbstractAsyncContextManager[FileTask]:
        """Take a task.

        Raises:
            NotFoundError: nobody waits for it.
            UnavailableError: the control plane cannot be reached.
        """
        ...
