"""The engine `deepagents` >= 0.7, which is the default."""

from agent_runner.adapters.agents.deepagents.factory import DeepAgentsFactory

__all__ = ["DeepAgentsFactory"]
