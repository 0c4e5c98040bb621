"""How the sandbox tests get a provider of each kind. A new kind adds one line to `PROVIDERS`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

from contract.container_engine import IMAGE, engine_url
from contract.daytona_server import KEY, daytona_server

from agent_runner.adapters.sandbox.daytona import DaytonaProvider
from agent_runner.adapters.sandbox.docker import DockerProvider
from agent_runner.adapters.sandbox.local import LocalProvider, UnconfinedProvider
from agent_runner.ports.sandboxes import SandboxProvider

ProviderFactory = Callable[[Path], AbstractAsyncContextManager[SandboxProvider]]


@asynccontextmanager
async def local(root: Path) -> AsyncIterator[SandboxProvider]:
    provider = LocalProvider(root / "sandboxes")
    try:
        yield provider
    finally:
        await provider.aclose()


@asynccontextmanager
async def unconfined(root: Path) -> AsyncIterator[SandboxProvider]:
    provider = UnconfinedProvider(root / "sandboxes")
    try:
        yield provider
    finally:
        await provider.aclose()


class KnownEngineProvider(DockerProvider):
    """Asks the engine what it is once a run: Podman searches the system's packages for each answer."""

    _known: ClassVar[dict[str, Any]] = {}

    async def _request(self, method: str, path: str, **options: Any) -> Any:
        if path != "version":
            return await super()._request(method, path, **options)
        if path not in self._known:
            self._known[path] = await super()._request(method, path, **options)
        return self._known[path]


@asynccontextmanager
async def docker(root: Path) -> AsyncIterator[SandboxProvider]:
    provider = KnownEngineProvider(image=IMAGE, url=engine_url(), auto_pull=False, extra_ro_paths=["/usr"])
    try:
        yield provider
    finally:
        await provider.aclose()


@asynccontextmanager
async def daytona(root: Path) -> AsyncIterator[SandboxProvider]:
    async with daytona_server(root / "daytona") as server:
        provider = DaytonaProvider(api_key=KEY, api_url=server.api_url)
        try:
            yield provider
        finally:
            await provider.aclose()


PROVIDERS: dict[str, ProviderFactory] = {
    "local": local,
    "unconfined": unconfined,
    "docker": docker,
    "daytona": daytona,
}
