"""The command line, `agent-runner …`."""

from __future__ import annotations

from agent_runner.cli._main import main

__all__ = ["main"]
