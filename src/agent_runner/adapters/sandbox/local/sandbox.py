"""One session's local sandbox: a bubblewrap process tree per command, over files that stay."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

from agent_runner.adapters.sandbox.local import longrunning
from agent_runner.adapters.sandbox.local.bubblewrap import BASE_ENVIRONMENT
from agent_runner.adapters.sandbox.local.files import SessionFiles, problem_of
from agent_runner.adapters.sandbox.names import check_environment, check_script, sandbox_path
from agent_runner.adapters.sandbox.processes import Finished, run_process
from agent_runner.errors import InvalidRequestError, SandboxUnavailableError
from agent_runner.ports.processes import SandboxProcess
from agent_runner.ports.sandboxes import ExecResult, FileProblem, OnOutput

_F_ADD_SEALS, _F_SEAL_ALL = 1033, 0x000F
_LAUNCHER_ENVIRONMENT: Mapping[str, str] = {"PATH": BASE_ENVIRONMENT["PATH"], "LANG": "C.UTF-8"}
"""For what runs before the sandbox is closed: nothing of the worker's, nothing of the session's."""


class Wrapping(Protocol):
    """How bubblewrap is to be called for one session; `Confinement` is one."""

    @property
    def view(self) -> int | None: ...

    async def launcher(self, arguments: int, inner: Sequence[str]) -> list[str]: ...

    async def rest(self) -> None: ...

    def options(self, *, seccomp: int, status: int, cwd: str, env: Mapping[str, str]) -> list[str]: ...


class Commands:
    """The commands of one session which run now, whichever execution began them."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Finished]] = set()

    def begin(self, work: Coroutine[Any, Any, Finished]) -> asyncio.Task[Finished]:
        run = asyncio.ensure_future(work)
        self._running.add(run)
        run.add_done_callback(self._running.discard)
        return run

    @property
    def any(self) -> bool:
        return bool(self._running)

    async def kill(self) -> None:
        """End all of them; their callers get SandboxUnavailableError."""
        for run in tuple(self._running):
            await _end(run)


class LocalSandbox:
    """Commands by bubblewrap, files by `openat2`. Made by `LocalProvider.ensure`."""

    def __init__(
        self,
        sandbox_id: str,
        wrapping: Wrapping,
        files: SessionFiles,
        *,
        seccomp: bytes,
        env: Mapping[str, str],
        commands: Commands,
        warnings: Sequence[str] = (),
    ) -> None:
        self._id = sandbox_id
        self._wrapping = wrapping
        self._files = files
        self._seccomp = seccomp
        self._env = check_environment(env)
        self._commands = commands
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
        variables = {**self._env, **check_environment(env or {})}
        try:
            directory = sandbox_path(cwd)
        except ValueError:
            raise InvalidRequestError.of("cwd", "is not a path.") from None
        run = self._commands.begin(self._run(encoded, directory, variables, timeout, on_output, output_limit))
        try:
            finished = await asyncio.shield(run)
        except asyncio.CancelledError:
            # Either the caller was cancelled, or `kill` ended the command under it.
            ended_by_us = run.cancelled()
            await _end(run)
            if ended_by_us:
                raise SandboxUnavailableError("The sandbox was stopped while a command ran in it.") from None
            raise
        finally:
            if not self._commands.any:
                await self._wrapping.rest()
        return ExecResult(
            finished.code, finished.stdout, finished.stderr, finished.timed_out, finished.truncated
        )

    async def open_process(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str = "/workspace"
    ) -> SandboxProcess:
        """As `KeepsProcesses` has it; the process ends with the session's commands."""
        return await longrunning.open_process(self, argv, env, cwd)

    async def put(self, files: Sequence[tuple[str, bytes]]) -> Sequence[FileProblem | None]:
        return await asyncio.to_thread(lambda: [self._put_one(path, data) for path, data in files])

    async def get(
        self, paths: Sequence[str], *, limit: int = 64 << 20
    ) -> Sequence[tuple[bytes, None] | tuple[None, FileProblem]]:
        return await asyncio.to_thread(lambda: [self._get_one(path, limit) for path in paths])

    def _put_one(self, path: str, data: bytes) -> FileProblem | None:
        try:
            self._files.write(path, data)
        except (OSError, ValueError) as error:
            return problem_of(error)
        return None

    def _get_one(self, path: str, limit: int) -> tuple[bytes, None] | tuple[None, FileProblem]:
        try:
            return self._files.read(path, limit), None
        except (OSError, ValueError) as error:
            return None, problem_of(error)

    async def _run(
        self,
        script: bytes,
        cwd: str,
        env: Mapping[str, str],
        timeout: timedelta,
        on_output: OnOutput | None,
        output_limit: int,
    ) -> Finished:
        status_read, status_write = os.pipe2(os.O_CLOEXEC)
        try:
            with (
                _memory_file("script", script) as script_fd,
                _memory_file("seccomp", self._seccomp) as seccomp,
            ):
                options = self._wrapping.options(seccomp=seccomp, status=status_write, cwd=cwd, env=env)
                with _memory_file("options", _joined(options)) as arguments:
                    descriptors = [script_fd, seccomp, arguments, status_write]
                    if self._wrapping.view is not None:
                        descriptors.append(self._wrapping.view)
                    finished = await run_process(
                        await self._wrapping.launcher(arguments, ["bash", f"/dev/fd/{script_fd}"]),
                        env=_LAUNCHER_ENVIRONMENT,
                        timeout=timeout,
                        output_limit=output_limit,
                        on_output=on_output,
                        pass_fds=descriptors,
                    )
            os.close(status_write)
            status_write = -1
            return _checked(finished, os.read(status_read, 4096), cwd)
        except OSError as error:
            raise SandboxUnavailableError(f"No command could be started: {error}") from error
        finally:
            os.close(status_read)
            if status_write >= 0:
                os.close(status_write)


def _checked(finished: Finished, status: bytes, cwd: str) -> Finished:
    """Tell a command that failed from a sandbox that could not be set up.

    Bubblewrap reports an exit code on its status descriptor only once the command was started.
    """
    started = any("exit-code" in json.loads(line) for line in status.decode().splitlines())
    if started or finished.timed_out or finished.code > 128:
        return finished
    message = finished.stderr.decode(errors="replace").strip()
    if "Can't chdir" in message:
        return Finished(1, b"", f"cd: {cwd}: No such directory\n".encode(), False, False)
    raise SandboxUnavailableError(f"The sandbox could not be set up: {message or 'no reason given'}")


def _joined(words: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(word) + b"\0" for word in words)


@contextmanager
def _memory_file(name: str, data: bytes) -> Iterator[int]:
    """A file without a place on disk, sealed, at its beginning."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _F_SEAL_ALL)
        yield descriptor
    finally:
        os.close(descriptor)


async def _end(run: asyncio.Task[Finished]) -> None:
    run.cancel()
    await asyncio.wait([run])
