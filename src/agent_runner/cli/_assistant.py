"""The agent that answers when none is named: made once, then the user's to change."""

from __future__ import annotations

from typing import cast

from agent_runner.client import AgentRunner
from agent_runner.client.kinds import AGENT, API_VERSION
from agent_runner.errors import AlreadyExistsError
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.commons.apiresource.enum_pb2 import organization

NAME = "assistant"
_INSTRUCTIONS = """\
You are a careful assistant working in a sandbox of your own. Your files are in /workspace and persist
over the messages of a session.

Plan work of more than two steps as todos and keep them up to date. Use your tools to find out rather
than guess: read files before you change them, run commands to check what you did. Answer briefly with
what you did, what you found, and where the results are.
"""


async def ensure_assistant(client: AgentRunner) -> Agent:
    """The agent `assistant` of the organization, made if there is none; never changed."""
    found = await client.resources.find(AGENT, NAME)
    if found is not None:
        return cast("Agent", found)
    agent = Agent(api_version=API_VERSION, kind="Agent")
    agent.metadata.name = agent.metadata.slug = NAME
    agent.metadata.org = client.org
    agent.metadata.owner_scope = organization
    agent.metadata.labels["agent-runner/built-in"] = "true"
    agent.spec.description = "Works on whatever it is asked; made by the command line."
    agent.spec.instructions = _INSTRUCTIONS
    try:
        return await client.resources.create(agent)
    except AlreadyExistsError:  # another command was quicker
        return cast("Agent", await client.resources.get(AGENT, NAME))
