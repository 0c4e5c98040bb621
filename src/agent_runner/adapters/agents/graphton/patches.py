"""The two places where Graphton 1.0.4 leaves no other way in. Checked against its exact version."""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from agent_runner.errors import SettingsError

VERSION = "1.0.4"


def check_version() -> None:
    """Raises SettingsError when Graphton is missing, or another than this adapter was proven with."""
    try:
        found = version("graphton")
    except PackageNotFoundError:
        raise SettingsError(
            "engine=graphton needs its own environment: pip install 'agent-runner-platform[graphton]' "
            "there, or `make graphton`. See docs/guides/engines.md."
        ) from None
    if found != VERSION:
        raise SettingsError(
            f"engine=graphton works with graphton {VERSION}, not {found}: pip install graphton=={VERSION}"
        )


def apply() -> None:
    """Let a backend object through, todos without their extra step, and no file contents into logs."""
    import deepagents.graph as graphs
    import graphton.core.sandbox_factory as sandboxes
    from langchain.agents.middleware import AgentMiddleware, TodoListMiddleware

    logging.getLogger("graphton").setLevel(logging.ERROR)
    if getattr(sandboxes.create_sandbox_backend, "ours", False):
        return
    made = sandboxes.create_sandbox_backend

    def create_sandbox_backend(config: dict[str, Any]) -> Any:
        return config["backend"] if config.get("backend") is not None else made(config)

    class Todos(TodoListMiddleware[Any]):
        """Without its look for parallel calls after each answer: `ToolCalls` refuses those."""

        after_model = AgentMiddleware.after_model
        aafter_model = AgentMiddleware.aafter_model

    create_sandbox_backend.ours = True  # type: ignore[attr-defined]
    sandboxes.create_sandbox_backend = create_sandbox_backend
    setattr(graphs, "TodoListMiddleware", Todos)  # noqa: B010 (a name it imported, no attribute to a type checker)
