"""Sandboxes at Daytona: one per session, found by name, stopped when idle, started again when needed."""

from __future__ import annotations

import asyncio
import secrets
import shlex
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from agent_runner.adapters.sandbox.daytona.api import GoneError, TakenError, call, connect
from agent_runner.adapters.sandbox.daytona.sandbox import DaytonaSandbox
from agent_runner.adapters.sandbox.daytona.skills import CHECK, fingerprint, unpack_script
from agent_runner.adapters.sandbox.daytona.workspace import DaytonaWorkspace
from agent_runner.adapters.sandbox.names import check_session_id, check_skill_hash
from agent_runner.adapters.sandbox.skills import pack_skills
from agent_runner.errors import NotFoundError, SandboxRefusedError, SandboxUnavailableError
from agent_runner.ports.sandboxes import Sandbox, SandboxSpec, Workspace

if TYPE_CHECKING:
    from daytona import AsyncDaytona, AsyncSandbox

DEFAULT_API_URL = "https://app.daytona.io/api"
LOST = "The session's sandbox was lost with its files; this is a new one."
ALTERED = "A skill had been altered in the sandbox; it was put right."

_MANAGED, _SESSION, _OWNER = "agent-runner.managed", "agent-runner.session", "agent-runner.owner"
_USABLE = ("started",)
_ASLEEP = ("stopped", "stopping", "archived", "archiving", "paused", "pausing")
_ON_THE_WAY = ("creating", "starting", "restoring", "resuming", "pending_build", "pulling_snapshot")

_AUTO_STOP_MINUTES = 15
"""Idle for so long, a sandbox is stopped by Daytona; its files stay."""

_PREPARE = """\
[ -d /workspace ] || mkdir -p /workspace 2>/dev/null || sudo -n mkdir -p /workspace
[ -w /workspace ] || sudo -n chown "$(id -u):$(id -g)" /workspace
for p in bash python3 grep head timeout mktemp; do command -v $p >/dev/null || echo $p; done
"""


class DaytonaProvider:
    """`SandboxProvider` at Daytona, in sandboxes named `ar-{session id}`."""

    kind = "daytona"

    def __init__(
        self,
        *,
        api_key: str,
        api_url: str = DEFAULT_API_URL,
        target: str = "us",
        snapshot: str = "",
        network_block_all: bool = True,
        domain_allow_list: str = "",
        owner: str = "",
        request_timeout: timedelta = timedelta(seconds=60),
        start_timeout: timedelta = timedelta(minutes=3),
    ) -> None:
        """Nothing is asked of Daytona before the first use.

        Args:
            snapshot: what sandboxes are made from; Daytona's default if empty.
            network_block_all: no network at all; otherwise Daytona's rules, and `domain_allow_list`.
            owner: tells apart the sandboxes of several installations with one key.
        """
        self._api_key = api_key
        self._api_url = api_url
        self._target = target
        self._snapshot = snapshot
        self._block = network_block_all
        self._domains = domain_allow_list
        self._owner = owner
        self._seconds = request_timeout.total_seconds()
        self._start_seconds = start_timeout.total_seconds()
        self._api: AsyncDaytona | None = None
        self._locks: dict[str, asyncio.Lock] = {}

    async def ensure(self, spec: SandboxSpec) -> Sandbox:
        session_id = check_session_id(spec.session_id)
        async with self._lock(session_id):
            remote, warnings = await self._wake(session_id)
            if remote is None:
                remote = await self._create(session_id)
                warnings = [LOST] if spec.previous_id else []
            elif spec.previous_id and remote.id != spec.previous_id:
                warnings.append(LOST)
            warnings += await self._lay_out_skills(remote, spec.skills)
        return self._sandbox(remote, spec.env, warnings)

    async def stop(self, session_id: str) -> None:
        remote = await self._find(check_session_id(session_id))
        if remote is not None and _state(remote) in (*_USABLE, *_ON_THE_WAY):
            try:
                await call(remote.stop, seconds=self._start_seconds)
            except (GoneError, TakenError):
                return

    async def delete(self, session_id: str) -> None:
        async with self._lock(check_session_id(session_id)):
            if remote := await self._find(session_id):
                await self._destroy(remote)
        self._locks.pop(session_id, None)

    async def sessions(self) -> Sequence[str]:
        from daytona import ListSandboxesQuery

        query = ListSandboxesQuery(labels={_MANAGED: "true", _OWNER: self._owner})

        async def listed() -> list[str]:
            api = self._connected()
            return [found.labels[_SESSION] async for found in api.list(query) if _SESSION in found.labels]

        return sorted(set(await call(listed, seconds=self._start_seconds)))

    def workspace(self, session_id: str) -> Workspace:
        check_session_id(session_id)

        async def wake() -> DaytonaSandbox:
            async with self._lock(session_id):
                remote, _ = await self._wake(session_id)
            if remote is None:
                raise NotFoundError("Sandbox of session", session_id)
            return self._sandbox(remote, {}, ())

        return DaytonaWorkspace(wake)

    async def sweep(self) -> None:
        return None  # what is there has a session's label, and is listed

    async def check(self) -> str:
        if not self._api_key:
            return "No key for Daytona is set. Set DAYTONA_API_KEY."
        try:
            await self.sessions()
        except (SandboxRefusedError, SandboxUnavailableError) as error:
            return str(error)
        return ""

    async def aclose(self) -> None:
        if self._api is not None:
            await self._api.close()  # type: ignore[no-untyped-call]
            self._api = None

    def _connected(self) -> AsyncDaytona:
        if self._api is None:
            self._api = connect(self._api_key, self._api_url, self._target)
        return self._api

    def _lock(self, session_id: str) -> asyncio.Lock:
        return self._locks.setdefault(session_id, asyncio.Lock())

    def _sandbox(
        self, remote: AsyncSandbox, env: Mapping[str, str], warnings: Sequence[str]
    ) -> DaytonaSandbox:
        return DaytonaSandbox(remote, env=env, seconds=self._seconds, warnings=warnings)

    async def _find(self, session_id: str) -> AsyncSandbox | None:
        api = self._connected()
        try:
            return await call(lambda: api.get(_name(session_id)), seconds=self._seconds)
        except GoneError:
            return None

    async def _wake(self, session_id: str) -> tuple[AsyncSandbox | None, list[str]]:
        """The session's sandbox, running; None where it has none that can be used."""
        remote = await self._find(session_id)
        if remote is None or _state(remote) in _USABLE:
            return remote, []
        state = _state(remote)
        try:
            if state in _ON_THE_WAY:
                await call(remote.wait_for_sandbox_start, seconds=self._start_seconds, again=False)
            elif state in _ASLEEP:
                await call(remote.start, seconds=self._start_seconds, again=False)
            else:
                # In error, or being destroyed: never to come back.
                await self._destroy(remote)
                return None, []
        except GoneError:
            return None, []
        return remote, []

    async def _create(self, session_id: str) -> AsyncSandbox:
        from daytona import CreateSandboxFromSnapshotParams

        api = self._connected()
        parameters = CreateSandboxFromSnapshotParams(
            name=_name(session_id),
            snapshot=self._snapshot or None,
            labels={_MANAGED: "true", _SESSION: session_id, _OWNER: self._owner},
            auto_stop_interval=_AUTO_STOP_MINUTES,
            network_block_all=self._block or None,
            domain_allow_list=self._domains or None,
            env_vars={},
        )
        try:
            remote = await call(
                lambda: api.create(parameters, timeout=self._start_seconds),
                seconds=self._start_seconds + 5,
                again=False,
            )
        except TakenError:
            # Another worker was faster, or an earlier attempt got through though its answer did not.
            found, _ = await self._wake(session_id)
            if found is None:
                raise
            remote = found
        await self._prepare(remote)
        return remote

    async def _prepare(self, remote: AsyncSandbox) -> None:
        command = shlex.join(["bash", "-c", _PREPARE])
        result = await call(lambda: remote.process.exec(command, cwd="/", timeout=30), seconds=60)
        if result.exit_code != 0 or (result.result or "").split():
            raise SandboxRefusedError(
                f"The snapshot {self._snapshot or 'of Daytona'} is not fit for agents; it must have bash, "
                f"python3, grep and coreutils, and a /workspace or sudo: {(result.result or '')[-300:]}"
            )

    async def _lay_out_skills(self, remote: AsyncSandbox, skills: Mapping[str, Path]) -> list[str]:
        names = [check_skill_hash(name) for name in skills]
        if not names:
            return []
        wanted = {name: await asyncio.to_thread(fingerprint, skills[name]) for name in names}
        command = shlex.join(["python3", "-I", "-c", CHECK, *names])
        found = await call(lambda: remote.process.exec(command, cwd="/", timeout=60), seconds=90)
        there = dict(line.split(" ", 1) for line in (found.result or "").splitlines() if " " in line)
        wrong = [name for name in names if there.get(name) != wanted[name]]
        if not wrong:
            return []
        archive = f"/tmp/.agent-runner-{secrets.token_hex(8)}.tar"  # noqa: S108 - the sandbox's own
        packed = await asyncio.to_thread(pack_skills, {name: skills[name] for name in wrong})
        await call(lambda: remote.fs.upload_file(packed, archive), seconds=self._start_seconds)
        script = shlex.join(["bash", "-c", unpack_script(archive, wrong)])
        result = await call(lambda: remote.process.exec(script, cwd="/", timeout=120), seconds=150)
        if result.exit_code != 0:
            raise SandboxUnavailableError(f"Skills could not be laid out: {(result.result or '')[-500:]}")
        empty = await asyncio.to_thread(fingerprint_of_nothing)
        return [ALTERED] if any(there.get(name, empty) != empty for name in wrong) else []

    async def _destroy(self, remote: AsyncSandbox) -> None:
        try:
            await call(lambda: remote.delete(wait=True), seconds=self._start_seconds)
        except (GoneError, TakenError):
            return


def fingerprint_of_nothing() -> str:
    """The fingerprint of a directory without files, which is also that of one which is not there."""
    return fingerprint(Path("/nonexistent"))


def _name(session_id: str) -> str:
    return f"ar-{session_id}"


def _state(remote: AsyncSandbox) -> str:
    return str(getattr(remote.state, "value", remote.state) or "unknown").lower()
