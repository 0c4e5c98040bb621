"""Mode `auto`: simple commands run locally, risky ones in a container, over the same files."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Protocol

import structlog

from agent_runner.adapters.sandbox.shared import SharedDirectories
from agent_runner.domain.commands import reason_to_isolate
from agent_runner.errors import SandboxRefusedError
from agent_runner.ports.processes import KeepsContainers, KeepsProcesses, SandboxProcess
from agent_runner.ports.sandboxes import (
    ExecResult,
    FileProblem,
    OnOutput,
    Sandbox,
    SandboxProvider,
    SandboxSpec,
    Workspace,
)

log = structlog.get_logger(__name__)

_LONG_SCRIPT = 64 << 10
"""Characters from which judging takes long enough to be felt by others on the event loop."""


class LocalKind(SandboxProvider, Protocol):
    """A provider that keeps sessions' files in directories of this host."""

    def directories(self, session_id: str) -> SharedDirectories: ...


class AutoProvider:
    """`SandboxProvider` over two: the session's files are the local one's, shared with the isolated one.

    The isolated sandbox is made when the first command needs it.
    """

    kind = "auto"

    def __init__(self, local: LocalKind, isolated: SandboxProvider) -> None:
        """`isolated` must have been made with `shared=local.directories`."""
        self._local = local
        self._isolated = isolated

    async def ensure(self, spec: SandboxSpec) -> Sandbox:
        own = f"auto-{spec.session_id}"
        previous = f"{self._local.kind}-{spec.session_id}" if spec.previous_id == own else spec.previous_id
        inner = replace(spec, previous_id=previous)
        return AutoSandbox(
            own, await self._local.ensure(inner), self._isolated, replace(spec, previous_id="")
        )

    async def stop(self, session_id: str) -> None:
        await self._local.stop(session_id)
        await self._isolated.stop(session_id)

    async def delete(self, session_id: str) -> None:
        # The container first: it holds the directories.
        await self._isolated.delete(session_id)
        await self._local.delete(session_id)

    async def sessions(self) -> Sequence[str]:
        return sorted({*await self._local.sessions(), *await self._isolated.sessions()})

    def workspace(self, session_id: str) -> Workspace:
        return self._local.workspace(session_id)

    async def sweep(self) -> None:
        await self._local.sweep()
        await self._isolated.sweep()

    async def check(self) -> str:
        found = {provider.kind: await provider.check() for provider in (self._local, self._isolated)}
        return " ".join(f"{kind}: {reason}" for kind, reason in found.items() if reason)

    async def aclose(self) -> None:
        await self._local.aclose()
        await self._isolated.aclose()


class AutoSandbox:
    """`Sandbox` which chooses for each command."""

    def __init__(self, sandbox_id: str, local: Sandbox, isolated: SandboxProvider, spec: SandboxSpec) -> None:
        self._id = sandbox_id
        self._local = local
        self._isolated = isolated
        self._spec = spec

    @property
    def id(self) -> str:
        return self._id

    @property
    def warnings(self) -> Sequence[str]:
        return self._local.warnings

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
        chosen = self._local
        if reason := await self._judged(script):
            log.info("command isolated", session_id=self._spec.session_id, reason=reason)
            chosen = await self._isolated_one()
        return await chosen.exec(
            script, cwd=cwd, env=env, timeout=timeout, on_output=on_output, output_limit=output_limit
        )

    async def put(self, files: Sequence[tuple[str, bytes]]) -> Sequence[FileProblem | None]:
        return await self._local.put(files)

    async def get(
        self, paths: Sequence[str], *, limit: int = 64 << 20
    ) -> Sequence[tuple[bytes, None] | tuple[None, FileProblem]]:
        return await self._local.get(paths, limit=limit)

    async def open_process(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str = "/workspace"
    ) -> SandboxProcess:
        """As `KeepsProcesses` has it; locally."""
        if not isinstance(self._local, KeepsProcesses):
            raise SandboxRefusedError("This kind of sandbox keeps no processes; use local or docker.")
        return await self._local.open_process(argv, env=env, cwd=cwd)

    async def open_container(
        self,
        image: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        volumes: Sequence[tuple[str, str, bool]] = (),
        network: str = "",
    ) -> SandboxProcess:
        """As `KeepsContainers` has it; beside the isolated sandbox."""
        isolated = await self._isolated_one()
        if not isinstance(isolated, KeepsContainers):
            raise SandboxRefusedError("This kind of sandbox starts no containers; use docker.")
        return await isolated.open_container(image, args, env=env, volumes=volumes, network=network)

    async def _judged(self, script: str) -> str:
        if len(script) < _LONG_SCRIPT:
            return reason_to_isolate(script)
        return await asyncio.to_thread(reason_to_isolate, script)

    async def _isolated_one(self) -> Sandbox:
        # Asked for each time: it may have been stopped, or its container lost, since the last.
        return await self._isolated.ensure(self._spec)
