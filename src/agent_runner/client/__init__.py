"""The public Python API.

    async with AgentRunner() as runner:
        execution = await runner.run("Write hello.txt", agent="assistant")
        print(execution.status.messages[-1].content)

Messages are the generated ones of `ai.stigmer.*` and `agent_runner.v1`. Errors are those of
`agent_runner.errors` and `agent_runner.client.errors`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from agent_runner.client.channels import Channel, address_and_key
from agent_runner.client.executions import Executions
from agent_runner.client.kinds import AGENT, kind_named
from agent_runner.client.resources import Resources
from agent_runner.client.skills import Skills
from agent_runner.client.workspaces import Workspaces
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution

if TYPE_CHECKING:
    from agent_runner.v1.events_pb2 import ExecutionEvent
    from agent_runner.v1.server_service_pb2 import (
        GetMetricsResponse,
        GetServerInfoResponse,
        RotateKeysResponse,
    )

__all__ = ["AgentRunner"]

R = TypeVar("R", bound=Message)
_ROTATION = timedelta(minutes=10)


class AgentRunner:
    """One server, over one connection. Use as an async context manager.

    Args:
        address: `host:port`, `https://…` or `unix:PATH`. None: AGENT_RUNNER_ADDRESS, else
            `127.0.0.1:7234`.
        api_key: bearer key. None: AGENT_RUNNER_API_KEY, else none.
        org: organization that names are looked up in. None: AGENT_RUNNER_ORG, else `local`.
    """

    def __init__(
        self, address: str | None = None, api_key: str | None = None, *, org: str | None = None
    ) -> None:
        default_address, default_key = address_and_key(os.environ)
        self.address = address or default_address
        self.org = org or os.environ.get("AGENT_RUNNER_ORG") or "local"
        self._channel = Channel(self.address, api_key or default_key)
        self.executions = Executions(self._channel, self.org)
        self.resources = Resources(self._channel, self.org)
        self.skills = Skills(self._channel, self.org)
        self.workspaces = Workspaces(self._channel)

    async def __aenter__(self) -> AgentRunner:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._channel.aclose()

    async def start(
        self,
        message: str,
        *,
        agent: str = "",
        session: str = "",
        model: str = "",
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        if_busy: str = "",
    ) -> AgentExecution:
        """Send a message to an agent (slug or id) or into a session (id); returns at once.

        Args:
            env, secrets: variables for this execution alone; secrets are masked wherever they show.
            if_busy: `queue` (the default), `reject`, `interrupt` or `steer`.

        Raises:
            NotFoundError: no such agent or session; agents with a name like it are in the message.
            InvalidRequestError: an empty message, or neither agent nor session.
        """
        agent_id = ""
        if agent:
            agent_id = (await self.resources.get(AGENT, agent)).metadata.id  # type: ignore[attr-defined]
        return await self.executions.start(
            message,
            agent_id=agent_id,
            session_id=session,
            model=model,
            env=env,
            secrets=secrets,
            if_busy=if_busy,
        )

    async def run(
        self,
        message: str,
        *,
        agent: str = "",
        session: str = "",
        model: str = "",
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        if_busy: str = "",
    ) -> AgentExecution:
        """As `start`, but returns when the execution has ended, however it ended: see its phase."""
        started = await self.start(
            message,
            agent=agent,
            session=session,
            model=model,
            env=env,
            secrets=secrets,
            if_busy=if_busy,
        )
        async for _ in self.watch(started.metadata.id):
            pass
        return await self.executions.get(started.metadata.id)

    def watch(self, execution_id: str, *, after_seq: int = 0) -> AsyncIterator[ExecutionEvent]:
        """Events in order, each once, over reconnects, until the execution has ended."""
        return self.executions.watch(execution_id, after_seq=after_seq)

    async def cancel(self, execution_id: str, reason: str = "") -> AgentExecution:
        """Ask an execution to stop; returns at once."""
        return await self.executions.cancel(execution_id, reason)

    async def terminate(self, execution_id: str, reason: str = "") -> AgentExecution:
        """End an execution without asking its runner."""
        return await self.executions.terminate(execution_id, reason)

    async def pause(self, execution_id: str, reason: str = "") -> AgentExecution:
        """Ask an execution to stop at its next checkpoint until it is resumed; returns at once."""
        return await self.executions.pause(execution_id, reason)

    async def resume(self, execution_id: str) -> AgentExecution:
        """Let a paused execution go on."""
        return await self.executions.resume(execution_id)

    async def apply(self, resource: R) -> R:
        """Make a resource, or change the one of the same slug."""
        return await self.resources.apply(resource)

    async def get(self, kind: str, name: str) -> Message:
        """Read a resource by kind (`agent`, `session`, …) and slug or id."""
        return await self.resources.get(kind_named(kind), name)

    def list(
        self, kind: str, *, labels: Mapping[str, str] | None = None, limit: int = 0
    ) -> AsyncIterator[Message]:
        """Resources of a kind, newest first."""
        return self.resources.list(kind_named(kind), labels=labels, limit=limit)

    async def delete(self, kind: str, name: str) -> Message:
        """Remove a resource by kind and slug or id; returns what it was."""
        return await self.resources.delete(kind_named(kind), name)

    async def server_info(self) -> GetServerInfoResponse:
        """What the server is; UnsupportedError when it speaks the Stigmer API alone."""
        from agent_runner.v1.server_service_pb2 import GetServerInfoRequest, GetServerInfoResponse

        method = "/agent_runner.v1.ServerService/GetServerInfo"
        return await self._channel.unary(method, GetServerInfoRequest(), GetServerInfoResponse)

    async def metrics(self) -> GetMetricsResponse:
        """Numbers of the server's process, for monitoring."""
        from agent_runner.v1.server_service_pb2 import GetMetricsRequest, GetMetricsResponse

        method = "/agent_runner.v1.ServerService/GetMetrics"
        return await self._channel.unary(method, GetMetricsRequest(), GetMetricsResponse)

    async def rotate_keys(self) -> RotateKeysResponse:
        """Encrypt every stored secret anew with the first key of the server's keyring."""
        from agent_runner.v1.server_service_pb2 import RotateKeysRequest, RotateKeysResponse

        method = "/agent_runner.v1.ServerService/RotateKeys"
        return await self._channel.unary(method, RotateKeysRequest(), RotateKeysResponse, timeout=_ROTATION)
