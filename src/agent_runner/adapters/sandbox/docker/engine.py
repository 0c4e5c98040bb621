"""Talking to the container engine: connections, errors in our words, commands with both streams."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_runner.errors import SandboxRefusedError, SandboxUnavailableError

if TYPE_CHECKING:
    import aiodocker

MISSING = 404
CONFLICT = 409
_REQUEST_TIMEOUT = 60.0
"""Seconds for one request to the engine; streams of output have no limit of their own."""


class EngineError(SandboxUnavailableError):
    """The engine said no. `status` is its HTTP status, 900 when it could not be reached."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(f"The container engine answered {status}: {message[:500]}")


def find_engine() -> str:
    """Address of the engine: `DOCKER_HOST`, else the first socket found, Docker's before Podman's.

    Raises:
        SandboxRefusedError: none is there.
    """
    if configured := os.environ.get("DOCKER_HOST"):
        return configured
    own = Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}"))
    sockets = [
        Path("/run/docker.sock"),
        own / "docker.sock",
        own / "podman/podman.sock",
        Path("/run/podman/podman.sock"),
    ]
    for socket in sockets:
        with suppress(OSError):
            if socket.is_socket():
                return f"unix://{socket}"
    raise SandboxRefusedError(
        "No container engine was found. Start Docker, or Podman's service "
        "(`systemctl --user start podman.socket`), or set DOCKER_HOST."
    )


@contextmanager
def in_our_words() -> Iterator[None]:
    """Turn the client's errors into EngineError."""
    import aiodocker
    import aiohttp

    try:
        yield
    except aiodocker.DockerError as error:
        raise EngineError(error.status, error.message) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise EngineError(900, str(error) or type(error).__name__) from error


@dataclass(frozen=True, slots=True)
class Piece:
    """What a command printed: `stream` 1 is standard output, 2 standard error."""

    stream: int
    data: bytes


class Engine:
    """A connection to one engine. Made on the event loop which uses it."""

    def __init__(self, url: str) -> None:
        """
        Raises:
            SandboxRefusedError: the client is not installed.
        """
        try:
            import aiodocker
            import aiohttp
        except ImportError:
            raise SandboxRefusedError(
                "Container sandboxes need one more package: pip install 'agent-runner-platform[docker]'"
            ) from None
        timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT)
        self._client: aiodocker.Docker = aiodocker.Docker(url=url, timeout=timeout)

    async def aclose(self) -> None:
        await self._client.close()

    async def request(
        self, method: str, path: str, *, body: Any = None, params: Mapping[str, str] | None = None
    ) -> Any:
        """One request, with JSON both ways.

        Raises:
            EngineError: the engine refused, or could not be reached.
        """
        with in_our_words():
            async with self._client._query(path, method, data=_encoded(body), params=params) as response:
                content = await response.read()
        if not content.strip():
            return None
        return json.loads(content) if content.lstrip()[:1] in (b"{", b"[") else None

    async def upload(self, container: str, path: str, archive: bytes) -> None:
        """Unpack a tar archive in a container, running or not."""
        with in_our_words():
            async with self._client._query(
                f"containers/{container}/archive", "PUT", data=archive, params={"path": path}
            ) as response:
                await response.read()

    async def pull(self, image: str) -> None:
        with in_our_words():
            await self._client.images.pull(image, timeout=None)

    @asynccontextmanager
    async def command(
        self, container: str, argv: Sequence[str], *, user: str, env: Mapping[str, str], stdin: bool
    ) -> AsyncIterator[EngineCommand]:
        """Start a command in a running container; leaving the context lets go of its streams, no more."""
        with in_our_words():
            started = await self._client.containers.container(container).exec(
                list(argv), user=user, environment=dict(env), stdin=stdin, workdir="/"
            )
            stream = started.start(detach=False)
            await asyncio.wait_for(stream._init(), _REQUEST_TIMEOUT)
        try:
            yield EngineCommand(started, stream)
        finally:
            # The connection may be in any state; it only has to go.
            with suppress(Exception):
                await stream.close()


class EngineCommand:
    """The streams of a command."""

    def __init__(self, started: Any, stream: Any) -> None:
        self._started = started
        self._stream = stream

    async def exit_code(self) -> int | None:
        """The code it ended with; None while it runs, or when its container has ended."""
        with in_our_words():
            found = await self._started.inspect()
        code: int | None = None if found.get("Running") else found.get("ExitCode")
        return code

    async def send(self, data: bytes) -> None:
        with in_our_words():
            await self._stream.write_in(data)

    async def output(self) -> AsyncIterator[Piece]:
        """What it prints, in order, until it closed both streams or the container is gone."""
        while True:
            with in_our_words():
                message = await self._stream.read_out()
            if message is None:
                return
            yield Piece(message.stream, message.data)


def _encoded(body: Any) -> bytes | None:
    if body is None:
        return None
    return json.dumps(body).encode()
