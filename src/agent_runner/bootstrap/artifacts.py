"""The store of artifacts, by the settings."""

from __future__ import annotations

from agent_runner.adapters.artifacts.deferred import DeferredArtifactStore
from agent_runner.bootstrap.data import DataDirectory
from agent_runner.ports.artifacts import ArtifactStore
from agent_runner.settings import Settings


def artifact_store(settings: Settings, data: DataDirectory) -> ArtifactStore:
    """The store of the settings' URL; without one, a folder of the data directory.

    Raises:
        SettingsError: the URL cannot be opened.
    """
    if settings.artifact_store:
        # At once: whoever named it hears at the start what is wrong with the name.
        return _opened(settings.artifact_store)
    return DeferredArtifactStore(lambda: _opened(data.artifacts.as_uri()))


def _opened(url: str) -> ArtifactStore:
    from agent_runner.adapters.artifacts.objects import ObjectArtifactStore

    return ObjectArtifactStore.from_url(url)
