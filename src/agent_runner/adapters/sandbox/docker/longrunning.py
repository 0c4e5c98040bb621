"""Programs that stay: in the session's container, or in one of their own beside it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from agent_runner.adapters.sandbox.docker.engine import (
    MISSING,
    Engine,
    EngineCommand,
    EngineError,
    Piece,
    in_our_words,
)
from agent_runner.adapters.sandbox.names import check_environment, sandbox_path
from agent_runner.errors import InvalidRequestError, SandboxUnavailableError

if TYPE_CHECKING:
    from agent_runner.adapters.sandbox.docker.sandbox import DockerSandbox

IN_DIRECTORY: Final = ("bash", "-c", 'cd -- "$1" && shift && exec "$@"', "program")
"""Before a directory and a program: the engine's own way fails where the directory is not there yet."""
_LAST_WORDS: Final = 4096
_GRACE: Final = 10.0
_BASIC: Final = frozenset({"HOME", "LANG", "TERM", "TMPDIR", "USER"})
"""Variables of the session every program needs; the others may be secrets it was not given."""
_MEMORY: Final = 2 << 30
_PROCESSES: Final = 256


class Pipes(Protocol):
    """The streams of a command, or of a container."""

    async def send(self, data: bytes) -> None: ...

    def output(self) -> AsyncIterator[Piece]: ...


class End(Protocol):
    """What ends the program with all it has started."""

    async def __call__(self) -> None: ...


class EngineProcess:
    """A `SandboxProcess` whose streams the engine carries."""

    def __init__(self, pipes: Pipes, end: End, held: AsyncExitStack) -> None:
        """`held` is left at the end: the connections."""
        self._pipes = pipes
        self._end = end
        self._held = held
        self._output = pipes.output()
        self._words = b""

    async def read(self) -> bytes:
        with suppress(StopAsyncIteration, SandboxUnavailableError):
            while True:
                piece = await anext(self._output)
                if piece.stream == 1 and piece.data:
                    return piece.data
                if piece.stream != 1:
                    self._words = (self._words + piece.data)[-_LAST_WORDS:]
        return b""

    async def write(self, data: bytes) -> None:
        await self._pipes.send(data)

    @property
    def last_words(self) -> str:
        return self._words.decode(errors="replace").strip()

    async def aclose(self) -> None:
        ending = asyncio.ensure_future(self._close())
        await asyncio.wait([ending], timeout=_GRACE)
        ending.cancel()

    async def _close(self) -> None:
        try:
            with suppress(SandboxUnavailableError):
                await self._end()
        finally:
            await self._held.aclose()


async def start_in(
    sandbox: DockerSandbox, argv: Sequence[str], env: Mapping[str, str], cwd: str
) -> EngineProcess:
    """Start a program in the session's container; see `KeepsProcesses`."""
    if not argv or not argv[0] or any("\0" in word for word in argv):
        raise InvalidRequestError.of("command", "must name a program, and hold no NUL character.")
    try:
        directory = sandbox_path(cwd)
    except ValueError:
        raise InvalidRequestError.of("cwd", "is not a path.") from None
    mark = secrets.token_hex(8)
    basic = {name: value for name, value in sandbox._env.items() if name in _BASIC}
    variables = {**basic, **check_environment(env), "AGENT_RUNNER_COMMAND": mark}
    held = AsyncExitStack()
    command = await held.enter_async_context(
        sandbox._command((*IN_DIRECTORY, directory, *argv), variables, stdin=True)
    )

    async def end() -> None:
        await sandbox._kill(mark)

    return EngineProcess(command, end, held)


async def start_beside(
    engine: Engine, image: str, args: Sequence[str], env: Mapping[str, str], network: str
) -> EngineProcess:
    """Start a container that is removed when it ends, which it does when nobody speaks to it any more."""
    configuration: dict[str, Any] = {
        "Image": image,
        "Env": [f"{name}={value}" for name, value in check_environment(env).items()],
        **dict.fromkeys(("OpenStdin", "StdinOnce", "AttachStdin", "AttachStdout", "AttachStderr"), True),
        "HostConfig": {
            "AutoRemove": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Memory": _MEMORY,
            "PidsLimit": _PROCESSES,
            **({"NetworkMode": network} if network else {}),
        },
    }
    if args:
        configuration["Cmd"] = list(args)
    made = await _create(engine, image, configuration)
    held = AsyncExitStack()

    async def end() -> None:
        await engine.request("DELETE", f"containers/{made}", params={"force": "true"})

    try:
        with in_our_words():
            stream = engine._client.containers.container(made).attach(stdin=True, stdout=True, stderr=True)
            await asyncio.wait_for(stream._init(), _GRACE)
        held.push_async_callback(_let_go, stream)
        await engine.request("POST", f"containers/{made}/start")
    except BaseException:
        with suppress(SandboxUnavailableError):
            await end()
        await held.aclose()
        raise
    return EngineProcess(EngineCommand(None, stream), end, held)


async def _create(engine: Engine, image: str, configuration: Mapping[str, Any]) -> str:
    try:
        created = await engine.request("POST", "containers/create", body=configuration)
    except EngineError as error:
        if error.status != MISSING:
            raise
        await engine.pull(image)
        created = await engine.request("POST", "containers/create", body=configuration)
    return str(created["Id"])


async def _let_go(stream: Any) -> None:
    # The connection may be in any state; it only has to go.
    with suppress(Exception):
        await stream.close()
