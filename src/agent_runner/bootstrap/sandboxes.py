"""The kinds of sandboxes, by their names in the settings."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

from agent_runner.adapters.sandbox.leases import Leases
from agent_runner.adapters.sandbox.lifecycle import ManagedProvider
from agent_runner.adapters.sandbox.local import LocalProvider, UnconfinedProvider
from agent_runner.adapters.sandbox.reaper import Reaper
from agent_runner.bootstrap.data import DataDirectory
from agent_runner.client.channels import Channel
from agent_runner.client.kinds import kind_named
from agent_runner.client.resources import Resources
from agent_runner.errors import SettingsError
from agent_runner.ports.sandboxes import SandboxProvider
from agent_runner.settings import Settings

KINDS = ("local", "unconfined", "docker", "daytona", "auto")

REAP_EVERY = timedelta(minutes=1)


def sandbox_provider(settings: Settings, data: DataDirectory, kind: str | None = None) -> SandboxProvider:
    """The provider of the settings' kind, or of the one asked for.

    Raises:
        SettingsError: there is no such kind.
    """
    chosen = kind or settings.sandbox
    made = _bare(chosen, settings, data)
    # A command of these is a process tree of its own: between two of them nothing runs to be stopped.
    if chosen in ("local", "unconfined") and not settings.sandbox_max_running:
        return made
    return ManagedProvider(
        made,
        Leases(data.sandboxes / "leases.sqlite"),
        owner=f"{socket.gethostname()}-{os.getpid()}",
        max_running=settings.sandbox_max_running,
        idle_after=timedelta(seconds=settings.sandbox_idle_seconds),
    )


def _bare(kind: str, settings: Settings, data: DataDirectory) -> SandboxProvider:
    if kind == "local":
        return _local(settings, data)
    if kind == "unconfined":
        return UnconfinedProvider(data.sandboxes)
    if kind == "docker":
        # Imported here: the other kinds do without it.
        from agent_runner.adapters.sandbox.docker import DockerProvider

        return DockerProvider(image=settings.sandbox_image, owner=_installation(data))
    if kind == "daytona":
        return _daytona(data)
    if kind == "auto":
        return _auto(settings, data)
    raise SettingsError(f"sandbox={kind} is no kind of sandbox. Choose {' or '.join(KINDS)}.")


def _local(settings: Settings, data: DataDirectory) -> LocalProvider:
    hosts = [host.strip() for host in settings.sandbox_allow_hosts.split(",") if host.strip()]
    return LocalProvider(data.sandboxes, network=settings.sandbox_network, allow_hosts=hosts)


def _auto(settings: Settings, data: DataDirectory) -> SandboxProvider:
    from agent_runner.adapters.sandbox.auto import AutoProvider
    from agent_runner.adapters.sandbox.docker import DockerProvider

    local = _local(settings, data)
    # What goes to the container installs packages above all, and those come over a network.
    isolated = DockerProvider(
        image=settings.sandbox_image, network="bridge", shared=local.directories, owner=_installation(data)
    )
    return AutoProvider(local, isolated)


def _daytona(data: DataDirectory) -> SandboxProvider:
    from agent_runner.adapters.sandbox.daytona import DEFAULT_API_URL, DaytonaProvider

    # The names Daytona's own tools and Stigmer's documents use.
    return DaytonaProvider(
        api_key=os.environ.get("DAYTONA_API_KEY", ""),
        api_url=os.environ.get("DAYTONA_API_URL", DEFAULT_API_URL),
        target=os.environ.get("DAYTONA_TARGET", "us"),
        snapshot=os.environ.get("DAYTONA_DEV_TOOLS_SNAPSHOT_ID", ""),
        owner=_installation(data),
    )


def _installation(data: DataDirectory) -> str:
    """What marks the sandboxes of this data directory where it shares an engine or an account with others.

    Without it, one installation's reaper would remove what another one's sessions work in.
    """
    path = data.sandboxes / "installation"
    if not path.exists() and data.sandboxes.is_dir():
        # Linked into place whole: of two processes that start at once, both read the one that came first.
        with tempfile.NamedTemporaryFile("w", dir=data.sandboxes) as made:
            made.write(secrets.token_hex(8))
            made.flush()
            with suppress(FileExistsError):
                os.link(made.name, path)
    return path.read_text().strip() if path.exists() else ""


@asynccontextmanager
async def reaping(provider: SandboxProvider, channel: Channel) -> AsyncIterator[None]:
    """Look through the sandboxes while the context is open, and remove those without a session."""
    resources = Resources(channel, org="")

    async def live_sessions() -> Collection[str]:
        kind = kind_named("session")
        return {session.metadata.id async for session in resources.list(kind)}  # type: ignore[attr-defined]

    reaper = asyncio.create_task(Reaper(provider, live_sessions, interval=REAP_EVERY).run(), name="reaper")
    try:
        yield
    finally:
        reaper.cancel()
        await asyncio.wait([reaper])
