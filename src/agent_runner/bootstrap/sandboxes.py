"""The kinds of sandboxes, by their names in the settings."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

from agent_runner.adapters.sandbox.local import LocalProvider, UnconfinedProvider
from agent_runner.bootstrap.data import DataDirectory
from agent_runner.errors import SettingsError
from agent_runner.ports.sandboxes import SandboxProvider
from agent_runner.settings import Settings

KINDS = ("local", "unconfined", "docker", "daytona", "auto")

_NAME_OF_OLD = "agent-sandbox-basic:latest"
"""The image Stigmer's users build themselves; who has not built it gets one that can be fetched."""


def sandbox_provider(settings: Settings, data: DataDirectory, kind: str | None = None) -> SandboxProvider:
    """The provider of the settings' kind, or of the one asked for.

    Raises:
        SettingsError: there is no such kind.
    """
    chosen = kind or settings.sandbox
    if chosen == "local":
        return LocalProvider(data.sandboxes)
    if chosen == "unconfined":
        return UnconfinedProvider(data.sandboxes)
    if chosen == "docker":
        return _docker(settings, data)
    if chosen == "daytona":
        return _daytona()
    if chosen == "auto":
        return _auto(settings, data)
    raise SettingsError(f"sandbox={chosen} is no kind of sandbox. Choose {' or '.join(KINDS)}.")


def _docker(settings: Settings, data: DataDirectory) -> SandboxProvider:
    # Imported here: the other kinds do without it.
    from agent_runner.adapters.sandbox.docker import DockerProvider
    from agent_runner.adapters.sandbox.leases import Leases
    from agent_runner.adapters.sandbox.lifecycle import ManagedProvider

    return ManagedProvider(
        DockerProvider(image=_image(settings)),
        Leases(data.sandboxes / "leases.sqlite"),
        owner=f"{socket.gethostname()}-{os.getpid()}",
        idle_after=timedelta(seconds=settings.sandbox_idle_seconds),
    )


def _auto(settings: Settings, data: DataDirectory) -> SandboxProvider:
    from agent_runner.adapters.sandbox.auto import AutoProvider
    from agent_runner.adapters.sandbox.docker import DockerProvider

    local = LocalProvider(data.sandboxes)
    # What goes to the container installs packages above all, and those come over a network.
    isolated = DockerProvider(image=_image(settings), network="bridge", shared=local.directories)
    return AutoProvider(local, isolated)


def _image(settings: Settings) -> str:
    from agent_runner.adapters.sandbox.docker import DEFAULT_IMAGE

    return DEFAULT_IMAGE if settings.sandbox_image == _NAME_OF_OLD else settings.sandbox_image


def _daytona() -> SandboxProvider:
    from agent_runner.adapters.sandbox.daytona import DEFAULT_API_URL, DaytonaProvider

    # The names Daytona's own tools and Stigmer's documents use.
    return DaytonaProvider(
        api_key=os.environ.get("DAYTONA_API_KEY", ""),
        api_url=os.environ.get("DAYTONA_API_URL", DEFAULT_API_URL),
        target=os.environ.get("DAYTONA_TARGET", "us"),
        snapshot=os.environ.get("DAYTONA_DEV_TOOLS_SNAPSHOT_ID", ""),
    )
