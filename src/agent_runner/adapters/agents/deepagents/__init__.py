"""The engine `deepagents` >= 0.7, which is the default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_runner.adapters.agents.deepagents.factory import DeepAgentsFactory

__all__ = ["DeepAgentsFactory"]


def __getattr__(name: str) -> Any:
    # Late, since the session here also serves Graphton, beside which deepagents is too old for the factory.
    if name == "DeepAgentsFactory":
        from agent_runner.adapters.agents.deepagents.factory import DeepAgentsFactory

        return DeepAgentsFactory
    raise AttributeError(name)
