"""Which engine runs the agents: one is installed, and imported when it is asked for."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from agent_runner.errors import SettingsError
from agent_runner.ports.agents import AgentFactory, Checkpoints

_NEEDED = (0, 7, 30)
"""The oldest deepagents the default engine works with; Graphton brings one below 0.5."""


def agent_factory(engine: str, checkpoints: Checkpoints) -> AgentFactory:
    """The factory of an engine.

    Raises:
        SettingsError: it is not installed here; the message says how to get it.
    """
    if engine == "graphton":
        return _graphton(checkpoints)
    if problem := missing("deepagents"):
        raise SettingsError(problem)
    from agent_runner.adapters.agents.deepagents import DeepAgentsFactory

    return DeepAgentsFactory(checkpoints)


def _graphton(checkpoints: Checkpoints) -> AgentFactory:
    if problem := missing("graphton"):
        raise SettingsError(problem)
    from agent_runner.adapters.agents.graphton import GraphtonFactory

    return GraphtonFactory(checkpoints)


def missing(engine: str) -> str:
    """Why an engine does not work here, and what to do; empty when it does."""
    if engine == "graphton":
        if find_spec("graphton") is None:
            return (
                "engine=graphton is not installed here. It needs an environment of its own: "
                "pip install 'agent-runner-platform[graphton]' there, or make graphton. "
                "Unset it to use deepagents."
            )
        return ""
    try:
        found = version("deepagents")
    except PackageNotFoundError:
        return "deepagents is not installed: pip install agent-runner-platform"
    if tuple(int(part) for part in found.split(".")[:3] if part.isdigit()) < _NEEDED:
        hint = "AGENT_RUNNER_ENGINE=graphton is what works here" if find_spec("graphton") else "upgrade it"
        return (
            f"engine=deepagents needs deepagents {'.'.join(map(str, _NEEDED))} or newer, not {found}: {hint}."
        )
    return ""


def describe(engine: str) -> str:
    """An engine's name and version, for people."""
    found = version(engine)
    beside = f", on deepagents {version('deepagents')}" if engine == "graphton" else ""
    return f"{engine} {found}{beside}"
