"""The engine `graphton` 1.0.4, in an environment of its own: it holds deepagents below 0.5."""

from agent_runner.adapters.agents.graphton.factory import GraphtonFactory

__all__ = ["GraphtonFactory"]
