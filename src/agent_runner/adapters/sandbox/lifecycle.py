"""The life of sandboxes over any kind: leases, a cap on how many run, stopping what is idle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import cast

import structlog

from agent_runner.adapters.sandbox.leases import Leases
from agent_runner.errors import SandboxUnavailableError
from agent_runner.ports.processes import KeepsContainers, KeepsProcesses, SandboxProcess
from agent_runner.ports.sandboxes import (
    ExecResult,
    FileEntry,
    FileProblem,
    OnOutput,
    Sandbox,
    SandboxProvider,
    SandboxSpec,
    Workspace,
)

log = structlog.get_logger(__name__)

LEASE = timedelta(seconds=45)
"""How long a sandbox counts as held after its last use; while a command runs it is prolonged."""


@dataclass(slots=True)
class _Running:
    """One sandbox which runs or is being started.

    Attributes:
        users: how many operations use it now.
        last_use: when the last one began or ended, on the monotonic clock.
        ready: set when it runs, or when starting it failed.
    """

    users: int
    last_use: float
    ready: asyncio.Event
    failed: bool = False


class ManagedProvider:
    """`SandboxProvider` over another one.

    No more than `max_running` sandboxes run at once. Who needs one more waits until another has nothing
    to do for a moment; that one is stopped, and started again, with its files, when it is used next.
    """

    def __init__(
        self,
        inner: SandboxProvider,
        leases: Leases,
        *,
        owner: str,
        max_running: int = 0,
        idle_after: timedelta = timedelta(minutes=10),
    ) -> None:
        """
        Args:
            leases: closed with this.
            owner: this worker's name, in leases.
            max_running: 0 for as many as there are sessions.
            idle_after: a sandbox without use for so long is stopped.
        """
        self._inner = inner
        self._leases = leases
        self._owner = owner
        self._max = max_running
        self._idle_after = idle_after.total_seconds()
        self._running: dict[str, _Running] = {}
        self._changed = asyncio.Condition()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def kind(self) -> str:
        return self._inner.kind

    async def ensure(self, spec: SandboxSpec) -> Sandbox:
        made: list[Sandbox] = []

        async def start() -> None:
            made.append(await self._inner.ensure(spec))

        async with self.using(spec, start):
            if not made:
                await start()
            return _managed(self, spec, made[0])

    async def stop(self, session_id: str) -> None:
        await self._inner.stop(session_id)
        await self._forget(session_id)

    async def delete(self, session_id: str) -> None:
        await self._inner.delete(session_id)
        await self._forget(session_id)
        await self._leases.drop(self.kind, session_id)

    async def sessions(self) -> Sequence[str]:
        return await self._inner.sessions()

    def workspace(self, session_id: str) -> Workspace:
        return _ManagedWorkspace(self, SandboxSpec(session_id), self._inner.workspace(session_id))

    async def sweep(self) -> None:
        await self._inner.sweep()

    async def check(self) -> str:
        return await self._inner.check()

    async def aclose(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None
        await self._inner.aclose()
        await self._leases.aclose()

    @property
    def running(self) -> Sequence[str]:
        """Sessions whose sandboxes this worker has running, the longest unused first."""
        return sorted(self._running, key=lambda session_id: self._running[session_id].last_use)

    @asynccontextmanager
    async def using(self, spec: SandboxSpec, start: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Hold the session's sandbox for one operation; `start` is called if it does not run."""
        if self._keeper is None:
            self._keeper = asyncio.ensure_future(self._keep())
        entry = await self._running_entry(spec, start)
        try:
            await self._leases.touch(self.kind, spec.session_id, self._owner, LEASE)
            yield
        finally:
            await self._let_go(entry)

    async def start_again(self, spec: SandboxSpec) -> Sandbox:
        """The sandbox of a session after it was stopped."""
        return await self._inner.ensure(spec)

    async def stop_idle(self) -> Sequence[str]:
        """Stop what was not used for the idle time; returns whose it was."""
        limit = time.monotonic() - self._idle_after
        idle = [name for name, entry in self._running.items() if not entry.users and entry.last_use <= limit]
        for session_id in idle:
            await self.stop(session_id)
            log.info("idle sandbox stopped", session_id=session_id, kind=self.kind)
        return idle

    async def _running_entry(self, spec: SandboxSpec, start: Callable[[], Awaitable[None]]) -> _Running:
        while True:
            entry, first = await self._enter(spec)
            try:
                if not first:
                    await entry.ready.wait()
                    if not entry.failed:
                        return entry
                else:
                    await start()
                    entry.ready.set()
                    return entry
            except BaseException:
                entry.failed = entry.failed or first
                await self._let_go(entry)
                if first:
                    await self._forget(spec.session_id)
                    entry.ready.set()
                raise
            await self._let_go(entry)

    async def _let_go(self, entry: _Running) -> None:
        entry.users -= 1
        entry.last_use = time.monotonic()
        async with self._changed:
            self._changed.notify_all()

    async def _enter(self, spec: SandboxSpec) -> tuple[_Running, bool]:
        """Count as a user of the session's entry; the first one, who made it, must start the sandbox."""
        told = False
        async with self._changed:
            while True:
                if entry := self._running.get(spec.session_id):
                    entry.users += 1
                    return entry, False
                if not self._max or len(self._running) < self._max or await self._make_room():
                    entry = _Running(1, time.monotonic(), asyncio.Event())
                    self._running[spec.session_id] = entry
                    return entry, True
                if not told and spec.on_waiting is not None:
                    spec.on_waiting(f"Waiting for a sandbox: {self._max} run, and no more may at once.")
                    told = True
                await self._changed.wait()

    async def _make_room(self) -> bool:
        """Stop the sandbox which was not used for the longest time, if one has nothing to do."""
        for session_id in self.running:
            if not self._running[session_id].users:
                del self._running[session_id]
                await self._inner.stop(session_id)
                return True
        return False

    async def _forget(self, session_id: str) -> None:
        self._running.pop(session_id, None)
        async with self._changed:
            self._changed.notify_all()

    async def _keep(self) -> None:
        """Prolong leases of what is in use, and stop what is idle, as long as the provider lives."""
        while True:
            await asyncio.sleep(min(LEASE.total_seconds() / 3, max(self._idle_after / 2, 0.05)))
            # Whatever is away for a moment is tried again the next time.
            with suppress(SandboxUnavailableError):
                for session_id, entry in tuple(self._running.items()):
                    if entry.users:
                        await self._leases.touch(self.kind, session_id, self._owner, LEASE)
                await self.stop_idle()


class ManagedSandbox:
    """`Sandbox` which is in use while something is done in it, and starts again after it was stopped."""

    def __init__(self, provider: ManagedProvider, spec: SandboxSpec, inner: Sandbox) -> None:
        self._provider = provider
        self._spec = replace(spec, previous_id=inner.id)
        self._inner = inner

    @property
    def id(self) -> str:
        return self._inner.id

    @property
    def warnings(self) -> Sequence[str]:
        return self._inner.warnings

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
        async with self._held() as sandbox:
            return await sandbox.exec(
                script,
                cwd=cwd,
                env=env,
                timeout=timeout,
                on_output=on_output,
                output_limit=output_limit,
            )

    async def put(self, files: Sequence[tuple[str, bytes]]) -> Sequence[FileProblem | None]:
        async with self._held() as sandbox:
            return await sandbox.put(files)

    async def get(
        self, paths: Sequence[str], *, limit: int = 64 << 20
    ) -> Sequence[tuple[bytes, None] | tuple[None, FileProblem]]:
        async with self._held() as sandbox:
            return await sandbox.get(paths, limit=limit)

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[Sandbox]:
        async def start() -> None:
            self._inner = await self._provider.start_again(self._spec)

        async with self._provider.using(self._spec, start):
            yield self._inner


class _ManagedWorkspace:
    """`Workspace` which counts as use of the sandbox, so that one started for it is stopped in the end."""

    def __init__(self, provider: ManagedProvider, spec: SandboxSpec, inner: Workspace) -> None:
        self._provider = provider
        self._spec = spec
        self._inner = inner

    async def list(self, path: str = "/workspace") -> Sequence[FileEntry]:
        async with self._provider.using(self._spec, self._start):
            return await self._inner.list(path)

    async def read(self, path: str, *, chunk_size: int = 1 << 20) -> AsyncIterator[bytes]:
        async with self._provider.using(self._spec, self._start):
            chunks = cast("AsyncGenerator[bytes]", self._inner.read(path, chunk_size=chunk_size))
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk

    async def write(self, path: str, chunks: AsyncIterator[bytes]) -> int:
        async with self._provider.using(self._spec, self._start):
            return await self._inner.write(path, chunks)

    async def _start(self) -> None:
        # Any use wakes the sandbox; this one fails where there is none.
        await self._inner.list("/tmp")  # noqa: S108 - the sandbox's own


class _KeepsProcesses(ManagedSandbox):
    async def open_process(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str = "/workspace"
    ) -> SandboxProcess:
        """As `KeepsProcesses` has it; the sandbox is in use until the process is closed."""
        async with AsyncExitStack() as held:
            sandbox = await held.enter_async_context(self._held())
            assert isinstance(sandbox, KeepsProcesses)
            process = await sandbox.open_process(argv, env=env, cwd=cwd)
            return _HeldProcess(process, held.pop_all())


class _KeepsContainers(_KeepsProcesses):
    async def open_container(
        self,
        image: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        volumes: Sequence[tuple[str, str, bool]] = (),
        network: str = "",
    ) -> SandboxProcess:
        """As `KeepsContainers` has it; the sandbox is in use until the container is closed."""
        async with AsyncExitStack() as held:
            sandbox = await held.enter_async_context(self._held())
            assert isinstance(sandbox, KeepsContainers)
            process = await sandbox.open_container(image, args, env=env, volumes=volumes, network=network)
            return _HeldProcess(process, held.pop_all())


class _HeldProcess:
    """A process, and the use of its sandbox, which ends with it."""

    def __init__(self, process: SandboxProcess, held: AsyncExitStack) -> None:
        self._process = process
        self._held = held

    async def read(self) -> bytes:
        return await self._process.read()

    async def write(self, data: bytes) -> None:
        await self._process.write(data)

    @property
    def last_words(self) -> str:
        return self._process.last_words

    async def aclose(self) -> None:
        async with self._held:
            await self._process.aclose()


def _managed(provider: ManagedProvider, spec: SandboxSpec, inner: Sandbox) -> ManagedSandbox:
    """With as many faces as the sandbox inside has."""
    if isinstance(inner, KeepsContainers):
        return _KeepsContainers(provider, spec, inner)
    if isinstance(inner, KeepsProcesses):
        return _KeepsProcesses(provider, spec, inner)
    return ManagedSandbox(provider, spec, inner)
