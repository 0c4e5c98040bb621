"""How the sandbox tests get a provider of each kind. A new kind adds one line to `PROVIDERS`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

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


PROVIDERS: dict[str, ProviderFactory] = {
    "local": local,
    "unconfined": unconfined,
}
