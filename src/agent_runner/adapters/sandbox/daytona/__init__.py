"""Sandboxes at Daytona, by its SDK."""

from agent_runner.adapters.sandbox.daytona.provider import DEFAULT_API_URL, DaytonaProvider

__all__ = ["DEFAULT_API_URL", "DaytonaProvider"]
