"""The kinds of sandboxes, by their names in the settings."""

from __future__ import annotations

from agent_runner.adapters.sandbox.local import LocalProvider, UnconfinedProvider
from agent_runner.bootstrap.data import DataDirectory
from agent_runner.errors import SettingsError
from agent_runner.ports.sandboxes import SandboxProvider
from agent_runner.settings import Settings

KINDS = ("local", "unconfined")


def sandbox_provider(settings: Settings, data: DataDirectory, kind: str | None = None) -> SandboxProvider:
    """The provider of the settings' kind, or of the one asked for.

    Raises:
        SettingsError: this installation does not have it.
    """
    chosen = kind or settings.sandbox
    if chosen == "local":
        return LocalProvider(data.sandboxes)
    if chosen == "unconfined":
        return UnconfinedProvider(data.sandboxes)
    raise SettingsError(f"sandbox={chosen} is not available in this version. Choose {' or '.join(KINDS)}.")
