"""How the sandbox tests get a provider of each kind. A new kind adds one line to `PROVIDERS`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.ports.sandboxes import SandboxProvider

ProviderFactory = Callable[[Path], AbstractAsyncContextManager[SandboxProvider]]


@asynccontextmanager
async def local(root: Path) -> AsyncIterator[SandboxProvider]:
    provider = LocalProvider(root / "sandboxes")
    try:
        yield provider
    finally:
        await provider.aclose()


PROVIDERS: dict[str, ProviderFactory] = {
    "local": local,
}
