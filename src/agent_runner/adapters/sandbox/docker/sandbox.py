"""One session's container: commands by `exec`, files by a script inside."""

from __future__ import annotations

import asyncio
import inspect
import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

from agent_runner.adapters.sandbox import inside
from agent_runner.adapters.sandbox.collected import Collected
from agent_runner.adapters.sandbox.commands import INLINE_LIMIT, KILLED, kill_command, run_command
from agent_runner.adapters.sandbox.docker import longrunning
from agent_runner.adapters.sandbox.docker.engine import CONFLICT, MISSING, Engine, EngineCommand, EngineError
from agent_runner.adapters.sandbox.names import check_environment, check_script, sandbox_path
from agent_runner.adapters.sandbox.problems import normal_path, refused_to_write
from agent_runner.errors import InvalidRequestError, SandboxRefusedError, SandboxUnavailableError
from agent_runner.ports.processes import SandboxProcess
from agent_runner.ports.sandboxes import ExecResult, FileProblem, OnOutput

BASE_ENVIRONMENT: Mapping[str, str] = {
    "HOME": "/workspace",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own
    "USER": "agent",
}

_FILES_SCRIPT = inspect.getsource(inside)
_FILES_TIMEOUT = 120.0
_KILL_TIMEOUT = 10.0
_RESTART_TIMEOUT = 20.0
_SETTLE = 5.0
"""Seconds for the streams of a killed command to end."""


class DockerSandbox:
    """The port's `Sandbox` in a running container. Made by `DockerProvider.ensure`."""

    def __init__(
        self,
        sandbox_id: str,
        engine: Engine,
        container: str,
        *,
        user: str,
        env: Mapping[str, str],
        warnings: Sequence[str] = (),
    ) -> None:
        """`user` is what commands run as, such as `1000:1000`."""
        self._id = sandbox_id
        self._engine = engine
        self._container = container
        self._user = user
        self._env = {**BASE_ENVIRONMENT, **check_environment(env)}
        self._warnings = tuple(warnings)

    @property
    def id(self) -> str:
        return self._id

    @property
    def warnings(self) -> Sequence[str]:
        return self._warnings

    async def exec(
        self,
        script: str,
        *,
        cwd: str = "/workspace",
        env: Mapping[str, str] | None = None,
        timeout: timedelta = timedelta(minutes=2),
        on_output: OnOutput | None = None,
        output_limit: int = 1 << 20,
    ) -> ExecResult:
        encoded = check_script(script)
        mark, token = secrets.token_hex(8), secrets.token_hex(16)
        variables = {**self._env, **check_environment(env or {}), "AGENT_RUNNER_COMMAND": mark}
        try:
            directory = sandbox_path(cwd)
        except ValueError:
            raise InvalidRequestError.of("cwd", "is not a path.") from None
        # The command's own clock is for the case that this worker dies; ours comes first.
        seconds = int(timeout.total_seconds()) + 30
        argv = run_command(token, encoded, directory, seconds)
        collected = Collected(token, on_output, output_limit)
        long = len(encoded) > INLINE_LIMIT
        timed_out = False
        async with self._command(argv, variables, stdin=long) as command:
            collecting = asyncio.ensure_future(_collect(command, collected, encoded if long else b""))
            try:
                await asyncio.wait_for(asyncio.shield(collecting), timeout.total_seconds())
            except TimeoutError:
                timed_out = True
            finally:
                if not collecting.done():
                    await self._end(mark, collecting)
            if collected.code is None and not timed_out:
                # It took its own wrapper along, or the container ended under it.
                collected.code = await self._code_without_mark(command)
        return collected.result(timed_out=timed_out)

    async def open_process(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str = "/workspace"
    ) -> SandboxProcess:
        """As `KeepsProcesses` has it."""
        return await longrunning.start_in(self, argv, env, cwd)

    async def open_container(
        self,
        image: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        volumes: Sequence[tuple[str, str, bool]] = (),
        network: str = "",
    ) -> SandboxProcess:
        """As `KeepsContainers` has it; directories of the host are never shown."""
        if volumes:
            raise SandboxRefusedError("volumes are refused: they would show the host's own directories")
        return await longrunning.start_beside(self._engine, image, args, env, network)

    async def put(self, files: Sequence[tuple[str, bytes]]) -> Sequence[FileProblem | None]:
        problems: list[FileProblem | None] = [refused_to_write(path) for path, _ in files]
        wanted = [index for index, problem in enumerate(problems) if problem is None]
        if wanted:
            request = {"files": [[sandbox_path(files[i][0]), len(files[i][1])] for i in wanted]}
            async with self.files("put", request) as talk:
                for index in wanted:
                    await talk.send(files[index][1])
                for index, word in zip(wanted, await talk.answer(), strict=True):
                    problems[index] = FileProblem(word) if word else None
        return problems

    async def get(
        self, paths: Sequence[str], *, limit: int = 64 << 20
    ) -> Sequence[tuple[bytes, None] | tuple[None, FileProblem]]:
        normal = [normal_path(path) for path in paths]
        wanted = [path for path in normal if path is not None]
        found: dict[str, tuple[bytes, None] | tuple[None, FileProblem]] = {}
        if wanted:
            async with self.files("get", {"paths": wanted, "limit": limit}) as talk:
                for path in wanted:
                    answer = await talk.answer()
                    if "problem" in answer:
                        found[path] = (None, FileProblem(answer["problem"]))
                    else:
                        found[path] = (await talk.frame(), None)
        invalid = (None, FileProblem.INVALID_PATH)
        return [invalid if path is None else found[path] for path in normal]

    @asynccontextmanager
    async def files(self, operation: str, request: Mapping[str, Any]) -> AsyncIterator[Conversation]:
        """Begin an operation of `inside.py`."""
        argv = ("python3", "-I", "-c", _FILES_SCRIPT)
        async with self._command(argv, BASE_ENVIRONMENT, stdin=True) as command:
            await command.send(json.dumps({"operation": operation, **request}).encode() + b"\n")
            yield Conversation(command)

    @asynccontextmanager
    async def _command(
        self, argv: Sequence[str], env: Mapping[str, str], *, stdin: bool
    ) -> AsyncIterator[EngineCommand]:
        try:
            async with self._engine.command(
                self._container, argv, user=self._user, env=env, stdin=stdin
            ) as command:
                yield command
        except EngineError as error:
            if error.status in (MISSING, CONFLICT):
                raise SandboxUnavailableError("The session's container is gone or has stopped.") from error
            raise

    async def _code_without_mark(self, command: EngineCommand) -> int:
        code = await command.exit_code()
        found = await self._engine.request("GET", f"containers/{self._container}/json")
        if code is None or not found["State"]["Running"]:
            raise SandboxUnavailableError("The sandbox ended while a command ran in it.")
        return code

    async def _end(self, mark: str, collecting: asyncio.Future[None]) -> None:
        """End a command's whole tree, also when the caller is being cancelled."""
        killing = asyncio.ensure_future(self._kill(mark))
        await asyncio.wait([killing], timeout=_KILL_TIMEOUT + _RESTART_TIMEOUT)
        await asyncio.wait([collecting], timeout=_SETTLE)
        for task in (killing, collecting):
            task.cancel()
        await asyncio.wait([killing, collecting], timeout=1)

    async def _kill(self, mark: str) -> None:
        # A container which is gone has nothing left to end.
        with suppress(SandboxUnavailableError):
            if await self._killed_inside(mark):
                return
            found = await self._engine.request("GET", f"containers/{self._container}/json")
            if found["State"]["Running"]:
                # As full of processes as it may be, it lets in none that ends them.
                await self._engine.request("POST", f"containers/{self._container}/restart", params={"t": "0"})

    async def _killed_inside(self, mark: str) -> bool:
        printed = b""
        with suppress(TimeoutError, EngineError):
            async with (
                asyncio.timeout(_KILL_TIMEOUT),
                self._command(kill_command(mark), BASE_ENVIRONMENT, stdin=False) as command,
            ):
                async for piece in command.output():
                    printed += piece.data
        return KILLED in printed


async def _collect(command: EngineCommand, collected: Collected, script: bytes) -> None:
    if script:
        await command.send(script)
    async for piece in command.output():
        if collected.add(piece.stream, piece.data):
            break
    collected.close()


class Conversation:
    """Frames to and from `inside.py`, each within a deadline."""

    def __init__(self, command: EngineCommand) -> None:
        self._command = command
        self._pieces = command.output()
        self._buffer = bytearray()
        self._errors = bytearray()

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(_FILES_TIMEOUT):
            await self._command.send(data)

    async def answer(self) -> Any:
        return json.loads(await self.frame())

    async def frame(self) -> bytes:
        """
        Raises:
            SandboxUnavailableError: the script ended before the frame was whole.
        """
        try:
            async with asyncio.timeout(_FILES_TIMEOUT):
                size = int(await self._take(8), 16)
                return await self._take(size)
        except TimeoutError:
            raise SandboxUnavailableError("The sandbox does not answer.") from None

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            try:
                piece = await anext(self._pieces)
            except StopAsyncIteration:
                reason = self._errors.decode(errors="replace").strip()[-500:]
                raise SandboxUnavailableError(
                    f"A file operation broke off in the sandbox. {reason}"
                ) from None
            (self._buffer if piece.stream == 1 else self._errors).extend(piece.data)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data
