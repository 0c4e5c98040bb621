"""Making Graphton agents in the safe profile: of its parts only those that do what they say.

Fresh model and graph per execution, since its guards keep state in them; our sandbox behind its tools;
tools of MCP servers from our own sessions; limits, loops, the journal and masking by our middleware.
Left out: its approvals, plan mode, summarization, prompt enhancement and model registry.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from deepagents.middleware.subagents import GENERAL_PURPOSE_SUBAGENT

from agent_runner.adapters.agents.answers import ArgumentWatch
from agent_runner.adapters.agents.graphton import patches
from agent_runner.adapters.agents.graphton.port import GraphtonPort
from agent_runner.adapters.agents.graphton.tools import GraphtonTools
from agent_runner.adapters.agents.limits import LimitCounter
from agent_runner.adapters.agents.model_calls import ModelCalls, RetryPolicy
from agent_runner.adapters.agents.session import DeepAgentSession
from agent_runner.adapters.agents.tool_calls import ToolCalls
from agent_runner.adapters.agents.tracing import trace_when_asked
from agent_runner.ports.agents import AgentSession, AgentSpecification, Checkpoints, ToolJournal

WORKSPACE_NOTE = (
    "Your files are in /workspace, and your commands start there. Give the file tools whole paths, such as "
    "/workspace/notes.md. Only /workspace and /tmp can be written; what is there stays for the session."
)

# It cuts longer results; the journal and the watchers get what the model gets.
_LONGEST_RESULT = 60_000


class GraphtonFactory:
    """The `AgentFactory` of Graphton.

    Args:
        recursion_limit: the most super-steps of a turn; a round of model and tools is five or six, which
            its guards make of two.

    Raises:
        SettingsError: Graphton is not installed, or in another version.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        recursion_limit: int = 20_000,
        retries: RetryPolicy = RetryPolicy(),  # noqa: B008 (a frozen value)
    ) -> None:
        patches.check_version()
        patches.apply()
        self._checkpoints = checkpoints
        self._recursion_limit = recursion_limit
        self._retries = retries
        # One at a time: building is Python throughout, 0.2 s each, so more threads would starve the loop.
        self._building = asyncio.Semaphore(1)
        trace_when_asked()

    @property
    def engine(self) -> str:
        return f"graphton {patches.VERSION}"

    @asynccontextmanager
    async def open(
        self, specification: AgentSpecification, journal: ToolJournal
    ) -> AsyncIterator[AgentSession]:
        """See `AgentFactory.open`."""
        limits = LimitCounter(specification.limits, specification.used, specification.used_tool_calls)
        arguments = ArgumentWatch()
        guards = [
            ToolCalls(journal, limits, specification.mask, specification.results),
            ModelCalls(
                specification.model.name, limits, self._retries, journal, arguments, specification.steering
            ),
            GraphtonTools(),
        ]
        port = GraphtonPort(specification.sandbox)
        async with self._building:
            graph = await asyncio.to_thread(self._build, specification, port, guards)
        yield DeepAgentSession(
            graph, specification, journal, arguments, self._checkpoints, self._recursion_limit
        )

    def _build(self, specification: AgentSpecification, port: GraphtonPort, guards: Sequence[Any]) -> Any:
        from graphton import create_deep_agent

        return create_deep_agent(
            model=specification.model.chat,
            system_prompt=f"{specification.instructions}\n\n{WORKSPACE_NOTE}",
            tools=list(specification.tools),
            middleware=list(guards),
            subagents=_sub_agents(specification, port, guards),
            sandbox_config={"type": "filesystem", "backend": port},
            checkpointer=self._checkpoints.saver,
            recursion_limit=self._recursion_limit,
            auto_enhance_prompt=False,
            max_tool_result_chars=_LONGEST_RESULT,
            # Ours looks at results too, so that polling is no loop. Thresholds beyond what is remembered
            # are never reached.
            loop_history_size=5,
            loop_consecutive_threshold=10,
            loop_total_threshold=20,
        )


def _sub_agents(
    specification: AgentSpecification, port: GraphtonPort, guards: Sequence[Any]
) -> list[dict[str, Any]]:
    """With Graphton's tools, which only the main agent gets by itself, and with our guards."""
    from graphton.core.tool_wrappers import create_platform_tool_wrappers

    given = [
        _sub_agent(sub.name, sub.description, sub.instructions, sub.tools, port, guards)
        for sub in specification.sub_agents
    ]
    general = GENERAL_PURPOSE_SUBAGENT
    if all(sub["name"] != general["name"] for sub in given):
        prompt = general["system_prompt"]
        given.append(
            _sub_agent(general["name"], general["description"], prompt, specification.tools, port, guards)
        )
    for sub in given:
        sub["tools"] += create_platform_tool_wrappers(backend=port)
    return given


def _sub_agent(
    name: str, description: str, instructions: str, tools: Sequence[Any], port: Any, guards: Sequence[Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "description": description,
        "system_prompt": f"{instructions}\n\n{WORKSPACE_NOTE}",
        "tools": list(tools),
        "middleware": list(guards),
    }
