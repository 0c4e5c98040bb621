"""Local sandboxes: bubblewrap around every command, files in a directory per session."""

from agent_runner.adapters.sandbox.local.cgroups import GroupLimits
from agent_runner.adapters.sandbox.local.limits import Limits
from agent_runner.adapters.sandbox.local.provider import LocalProvider
from agent_runner.adapters.sandbox.local.unconfined import UnconfinedProvider

__all__ = ["GroupLimits", "Limits", "LocalProvider", "UnconfinedProvider"]
