"""Executions that are created, cancelled and paused whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from agent_runner.client import AgentRunner
from agent_runner.errors import AgentRunnerError, AlreadyExistsError, FailedPreconditionError
from agent_runner.v1.options_pb2 import BUSY_POLICY_STEER
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.commons.apiresource.enum_pb2 import ApiResourceOwnerScope
from chaos.watchers import Watched

_CREATE = "/ai.stigmer.agentic.agentexecution.v1.AgentExecutionCommandController/create"
_AWAY = timedelta(minutes=10)


class Load:
    """Makes executions and keeps what was seen of them.

    Args:
        name: part of all ids; new for each load.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.watched: list[Watched] = []
        self.sessions: dict[str, list[Watched]] = {}
        """In the order of creation."""

    async def make_agent(self, runner: AgentRunner, script: Path) -> str:
        """An agent that follows the script; returns its id."""
        agent = Agent(api_version="agentic.stigmer.ai/v1", kind="Agent")
        agent.metadata.name = f"chaos {self._name} {script.stem}"
        agent.metadata.org, agent.metadata.owner_scope = "local", ApiResourceOwnerScope.organization
        agent.spec.instructions = "Do what the script says."
        agent.spec.options.model.model_name = f"script:{script}"
        return str((await runner.resources.apply(agent)).metadata.id)

    async def create(
        self,
        runner: AgentRunner,
        number: int,
        message: str,
        *,
        agent_id: str = "",
        session_id: str = "",
        steers: bool = False,
    ) -> Watched:
        """Create until it is certain that it is there, once.

        The id is chosen here, so that a create whose answer was lost is not made twice.
        """
        execution = AgentExecution(api_version="agentic.stigmer.ai/v1", kind="AgentExecution")
        execution.metadata.id = f"aex-{self._name}-{number:06d}"
        execution.metadata.name = execution.metadata.id
        execution.metadata.org = "local"
        execution.spec.message = message
        execution.spec.agent_id, execution.spec.session_id = agent_id, session_id
        if steers:
            execution.spec.execution_config.options.if_busy = BUSY_POLICY_STEER
        return self.add(await self._insist(runner, execution))

    def add(self, made: AgentExecution) -> Watched:
        """Keep an execution that was made."""
        watched = Watched(made.metadata.id, made.spec.session_id, made.spec.message)
        self.watched.append(watched)
        self.sessions.setdefault(watched.session_id, []).append(watched)
        return watched

    async def _insist(self, runner: AgentRunner, execution: AgentExecution) -> AgentExecution:
        async with asyncio.timeout(_AWAY.total_seconds()):
            while True:
                try:
                    return await runner._channel.unary(_CREATE, execution, AgentExecution)
                except AlreadyExistsError:
                    return await self._read(runner, execution.metadata.id)
                except AgentRunnerError as error:
                    if not _passing(error):
                        raise
                await asyncio.sleep(0.2)

    async def _read(self, runner: AgentRunner, execution_id: str) -> AgentExecution:
        while True:
            try:
                return await runner.executions.get(execution_id)
            except AgentRunnerError as error:
                if not _passing(error):
                    raise
            await asyncio.sleep(0.2)

    async def cancel(self, runner: AgentRunner, watched: Watched, after: float) -> None:
        """Ask until the answer is there: that it stops, or that it has ended already."""
        await asyncio.sleep(after)
        while True:
            try:
                await runner.executions.cancel(watched.execution_id, "The storm took it.")
            except FailedPreconditionError:
                return
            except AgentRunnerError as error:
                if not _passing(error):
                    raise
                # The answer may be lost rather than the question.
                watched.cancelled = True
                await asyncio.sleep(0.2)
            else:
                watched.cancelled = True
                return

    async def pause(self, runner: AgentRunner, watched: Watched, after: float, seconds: float) -> None:
        """Pause it for so long, whatever happens meanwhile."""
        await asyncio.sleep(after)
        if await self._done(lambda: runner.executions.pause(watched.execution_id)):
            await asyncio.sleep(seconds)
            await self._done(lambda: runner.executions.resume(watched.execution_id))

    async def _done(self, ask: Callable[[], Awaitable[object]]) -> bool:
        """Ask until it is done; False when the execution has ended."""
        while True:
            try:
                await ask()
                return True
            except FailedPreconditionError:
                return False
            except AgentRunnerError as error:
                if not _passing(error):
                    raise
            await asyncio.sleep(0.2)


def _passing(error: AgentRunnerError) -> bool:
    """Whether the call may be made again: the server is away, or the connection broke in the middle."""
    return error.retryable or type(error).__name__ == "RemoteError"
