"""One session's sandbox at Daytona: commands by its process sessions, files by a script inside."""

from __future__ import annotations

import asyncio
import inspect
import json
import secrets
import shlex
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from agent_runner.adapters.sandbox import inside
from agent_runner.adapters.sandbox.collected import Collected
from agent_runner.adapters.sandbox.commands import INLINE_LIMIT, kill_command, run_command
from agent_runner.adapters.sandbox.daytona.api import GoneError, TakenError, call
from agent_runner.adapters.sandbox.names import check_environment, check_script, sandbox_path
from agent_runner.adapters.sandbox.problems import normal_path, refused_to_write
from agent_runner.errors import InvalidRequestError, SandboxUnavailableError
from agent_runner.ports.sandboxes import ExecResult, FileProblem, OnOutput

if TYPE_CHECKING:
    from daytona import AsyncSandbox

BASE_ENVIRONMENT: Mapping[str, str] = {
    "HOME": "/workspace",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own
}

_FILES_SCRIPT = inspect.getsource(inside)
_FILES_SECONDS = 120.0
_KILL_SECONDS = 10.0
_ACTIVITY_SECONDS = 60.0
"""How often Daytona is told that a command still runs; it does not notice by itself."""


class DaytonaSandbox:
    """The port's `Sandbox` at Daytona. Made by `DaytonaProvider.ensure`."""

    def __init__(
        self,
        remote: AsyncSandbox,
        *,
        env: Mapping[str, str],
        seconds: float,
        warnings: Sequence[str] = (),
    ) -> None:
        """`seconds` is the deadline of one request."""
        self._remote = remote
        self._env = {**BASE_ENVIRONMENT, **check_environment(env)}
        self._seconds = seconds
        self._warnings = tuple(warnings)

    @property
    def id(self) -> str:
        return self._remote.id

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
        if len(encoded) > INLINE_LIMIT:
            encoded = await self._uploaded_script(encoded, mark)
        # The command's own clock is for the case that this worker dies; ours comes first.
        argv = run_command(token, encoded, directory, int(timeout.total_seconds()) + 30)
        words = ["env", *(f"{name}={value}" for name, value in variables.items()), *argv]
        collected = Collected(token, on_output, output_limit)
        timed_out = False
        running = asyncio.ensure_future(self._run(shlex.join(words), mark, collected))
        try:
            await asyncio.wait_for(asyncio.shield(running), timeout.total_seconds())
        except TimeoutError:
            timed_out = True
        finally:
            if not running.done():
                await self._end(mark, running)
        if running.done() and not running.cancelled() and (error := running.exception()):
            raise error
        if collected.code is None and not timed_out:
            raise SandboxUnavailableError("The sandbox ended while a command ran in it.")
        return collected.result(timed_out=timed_out)

    async def put(self, files: Sequence[tuple[str, bytes]]) -> Sequence[FileProblem | None]:
        problems: list[FileProblem | None] = [refused_to_write(path) for path, _ in files]
        wanted = [index for index, problem in enumerate(problems) if problem is None]
        if wanted:
            request = {"files": [[sandbox_path(files[i][0]), len(files[i][1])] for i in wanted]}
            frames = await self.files("put", request, b"".join(files[i][1] for i in wanted))
            for index, word in zip(wanted, json.loads(next(frames)), strict=True):
                problems[index] = FileProblem(word) if word else None
        return problems

    async def get(
        self, paths: Sequence[str], *, limit: int = 64 << 20
    ) -> Sequence[tuple[bytes, None] | tuple[None, FileProblem]]:
        normal = [normal_path(path) for path in paths]
        wanted = [path for path in normal if path is not None]
        found: dict[str, tuple[bytes, None] | tuple[None, FileProblem]] = {}
        if wanted:
            frames = await self.files("get", {"paths": wanted, "limit": limit})
            for path in wanted:
                answer = json.loads(next(frames))
                found[path] = (
                    (None, FileProblem(answer["problem"])) if "problem" in answer else (next(frames), None)
                )
        invalid = (None, FileProblem.INVALID_PATH)
        return [invalid if path is None else found[path] for path in normal]

    async def files(self, operation: str, request: Mapping[str, Any], data: bytes = b"") -> Frames:
        """Do an operation of `inside.py`: the request goes up as a file, the answer comes down as one."""
        asked = json.dumps({"operation": operation, **request}).encode() + b"\n" + data
        async with self._scratch() as (question, answer):
            await call(lambda: self._remote.fs.upload_file(asked, question), seconds=_FILES_SECONDS)
            script = shlex.join(["python3", "-I", "-c", _FILES_SCRIPT])
            result = await self._simple(f"{script} < {question} > {answer}", _FILES_SECONDS)
            if result.exit_code != 0:
                raise SandboxUnavailableError(f"A file operation broke off: {result.result[-500:]}")
            content = await call(lambda: self._remote.fs.download_file(answer), seconds=_FILES_SECONDS)
        return Frames(content or b"")

    @asynccontextmanager
    async def _scratch(self) -> AsyncIterator[tuple[str, str]]:
        name = f"/tmp/.agent-runner-{secrets.token_hex(8)}"  # noqa: S108 - the sandbox's own
        try:
            yield f"{name}.in", f"{name}.out"
        finally:
            with suppress(SandboxUnavailableError):
                await self._simple(f"rm -f {name}.in {name}.out", self._seconds)

    async def _simple(self, command: str, seconds: float) -> Any:
        """One command, its output whole at its end."""
        try:
            return await call(
                lambda: self._remote.process.exec(command, cwd="/", timeout=int(seconds)),
                seconds=seconds + 10,
                again=False,
            )
        except (GoneError, TakenError) as error:
            raise SandboxUnavailableError(f"The session's sandbox is gone or has stopped. {error}") from error

    async def _uploaded_script(self, script: bytes, mark: str) -> bytes:
        """A script which runs the uploaded one: a request's command is to stay small."""
        path = f"/tmp/.agent-runner-{mark}.sh"  # noqa: S108 - the sandbox's own
        await call(lambda: self._remote.fs.upload_file(script, path), seconds=_FILES_SECONDS)
        return f"bash {path}; code=$?; rm -f {path}; exit $code".encode()

    async def _run(self, command: str, mark: str, collected: Collected) -> None:
        """Run a command in a process session of its own, until the end's mark was seen."""
        from daytona import SessionExecuteRequest

        process, name = self._remote.process, f"ar-{mark}"
        try:
            await call(lambda: process.create_session(name), seconds=self._seconds, again=False)
            request = SessionExecuteRequest(command=command, run_async=True)
            begun = await call(
                lambda: process.execute_session_command(name, request), seconds=self._seconds, again=False
            )
            await self._follow(name, begun.cmd_id, collected)
        except (GoneError, TakenError) as error:
            raise SandboxUnavailableError(f"The session's sandbox is gone or has stopped. {error}") from error
        finally:
            collected.close()
            with suppress(SandboxUnavailableError):
                await call(lambda: process.delete_session(name), seconds=_KILL_SECONDS, again=False)

    async def _follow(self, name: str, command_id: str, collected: Collected) -> None:
        """Read both streams live. They may stay open after the mark, for what runs in the background."""
        ended = asyncio.Event()

        def take(stream: int, text: str) -> None:
            if collected.add(stream, text.encode()):
                ended.set()

        async def read() -> None:
            await self._remote.process.get_session_command_logs_async(
                name, command_id, lambda text: take(1, text), lambda text: take(2, text)
            )

        reading = asyncio.ensure_future(call(read, seconds=86_400, again=False))
        seen = asyncio.ensure_future(ended.wait())
        active = asyncio.ensure_future(self._keep_active())
        try:
            await asyncio.wait([reading, seen], return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and not ended.is_set():
                reading.result()
        finally:
            for task in (reading, seen, active):
                task.cancel()
            await asyncio.wait([reading, seen, active])

    async def _keep_active(self) -> None:
        while True:
            await asyncio.sleep(_ACTIVITY_SECONDS)
            with suppress(SandboxUnavailableError):
                await call(self._remote.refresh_activity, seconds=self._seconds)

    async def _end(self, mark: str, running: asyncio.Future[None]) -> None:
        """End a command's whole tree, also when the caller is being cancelled."""
        killing = asyncio.ensure_future(self._kill(mark))
        await asyncio.wait([killing], timeout=_KILL_SECONDS)
        await asyncio.wait([running], timeout=5)
        for task in (killing, running):
            task.cancel()
        await asyncio.wait([killing, running], timeout=_KILL_SECONDS)

    async def _kill(self, mark: str) -> None:
        with suppress(SandboxUnavailableError):
            await self._simple(shlex.join(kill_command(mark)), _KILL_SECONDS)


class Frames:
    """The frames `inside.py` answered with, one after the other."""

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)

    def __iter__(self) -> Frames:
        return self

    def __next__(self) -> bytes:
        """
        Raises:
            SandboxUnavailableError: there are no more, though one was expected.
        """
        head = bytes(self._content[:8])
        if len(head) < 8 or len(self._content) < 8 + int(head, 16):
            raise SandboxUnavailableError("A file operation broke off in the sandbox.")
        size = int(head, 16)
        frame = bytes(self._content[8 : 8 + size])
        self._content = self._content[8 + size :]
        return frame
