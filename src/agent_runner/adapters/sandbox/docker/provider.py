"""Container sandboxes: one container and three volumes per session, by Docker's API or Podman's."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from agent_runner.adapters.sandbox.docker.configuration import (
    PLACES,
    ContainerLimits,
    ContainerSettings,
    container_name,
    volume_name,
)
from agent_runner.adapters.sandbox.docker.engine import MISSING, Engine, EngineError, find_engine
from agent_runner.adapters.sandbox.docker.sandbox import DockerSandbox
from agent_runner.adapters.sandbox.docker.seccomp import SeccompOption
from agent_runner.adapters.sandbox.docker.workspace import DockerWorkspace
from agent_runner.adapters.sandbox.names import check_session_id, check_skill_hash
from agent_runner.adapters.sandbox.shared import SharedDirectories
from agent_runner.adapters.sandbox.skills import pack_skills
from agent_runner.errors import NotFoundError, SandboxRefusedError, SandboxUnavailableError
from agent_runner.ports.sandboxes import Sandbox, SandboxSpec, Workspace

DEFAULT_IMAGE = "docker.io/library/python:3.12-slim"

LOST = "The session's sandbox was lost with its files; this is a new one."
REPLACED = "The session's container was gone and has been replaced; its files are kept."

_MANAGED = "agent-runner.managed"
_SESSION = "agent-runner.session"
_OWNER = "agent-runner.owner"
_HELPER = "agent-runner.helper"
_HELPER_AGE = 120.0
"""Seconds after which a helper is nobody's: it lives for one upload."""

_READY = """\
for _ in {1..500}; do [ -O /workspace ] && break; sleep 0.02; done
for p in python3 grep head timeout mktemp; do type -P $p >/dev/null || echo $p; done
"""


class DockerProvider:
    """`SandboxProvider` in containers named `ar-{session id}`."""

    kind = "docker"

    def __init__(
        self,
        *,
        image: str = DEFAULT_IMAGE,
        url: str = "",
        network: str = "none",
        auto_pull: bool = True,
        limits: ContainerLimits | None = None,
        runtime: str = "",
        extra_ro_paths: Sequence[str] = (),
        owner: str = "",
        shared: Callable[[str], SharedDirectories] | None = None,
    ) -> None:
        """Nothing is touched before the first use.

        Args:
            image: has bash, python3, GNU grep and coreutils.
            url: the engine's address, such as `unix:///run/docker.sock`; by default DOCKER_HOST, else
                the first socket found.
            network: `none`, or a network the engine knows.
            auto_pull: fetch the image when the engine has it not.
            runtime: an OCI runtime the engine knows, such as `runsc`; its own default if empty.
            extra_ro_paths: directories of the engine's host to show read-only at the same paths.
            owner: tells apart the sandboxes of several installations on one engine.
            shared: gives the directories of a session on this host, which the engine must see as well;
                without it sessions have volumes. What `shared` gives is made and removed elsewhere.
        """
        self._settings = ContainerSettings(
            image=image,
            network=network,
            limits=limits or ContainerLimits(),
            runtime=runtime,
            extra_ro_paths=tuple(extra_ro_paths),
        )
        self._url = url
        self._auto_pull = auto_pull
        self._owner = owner
        self._shared = shared
        self._engine: Engine | None = None
        self._profile: SeccompOption | None = None
        self._locks: dict[str, asyncio.Lock] = {}

    async def ensure(self, spec: SandboxSpec) -> Sandbox:
        session_id = check_session_id(spec.session_id)
        async with self._lock(session_id):
            warnings = await self._start(session_id, previous_id=spec.previous_id)
            await self._lay_out_skills(session_id, spec.skills)
        return self._sandbox(session_id, spec.env, warnings)

    async def stop(self, session_id: str) -> None:
        name = container_name(check_session_id(session_id))
        await self._quietly("POST", f"containers/{name}/stop", params={"t": "0"})

    async def delete(self, session_id: str) -> None:
        check_session_id(session_id)
        async with self._lock(session_id):
            await self._quietly(
                "DELETE", f"containers/{container_name(session_id)}", params={"force": "true", "v": "true"}
            )
            await self._remove_helpers(f"{_HELPER}={session_id}")
            for part in PLACES:
                await self._quietly(
                    "DELETE", f"volumes/{volume_name(session_id, part)}", params={"force": "true"}
                )
        self._locks.pop(session_id, None)

    async def sessions(self) -> Sequence[str]:
        params = {"filters": json.dumps({"label": [f"{_MANAGED}=true", f"{_OWNER}={self._owner}"]})}
        containers = await self._request("GET", "containers/json", params={"all": "true", **params})
        volumes = await self._request("GET", "volumes", params=params)
        labels = [found["Labels"] or {} for found in (*containers, *(volumes.get("Volumes") or ()))]
        # Not every engine filters volumes by several labels at once.
        mine = (label for label in labels if label.get(_OWNER) == self._owner)
        return sorted({label[_SESSION] for label in mine if _SESSION in label})

    def workspace(self, session_id: str) -> Workspace:
        check_session_id(session_id)

        async def wake() -> DockerSandbox:
            async with self._lock(session_id):
                if not await self._exists(f"volumes/{volume_name(session_id, 'ws')}"):
                    raise NotFoundError("Sandbox of session", session_id)
                await self._start(session_id)
            return self._sandbox(session_id, {}, ())

        return DockerWorkspace(wake)

    async def sweep(self) -> None:
        """Remove helpers which were to lay out skills when their worker ended."""
        await self._remove_helpers(_HELPER, older_than=_HELPER_AGE)

    async def check(self) -> str:
        try:
            await self._request("GET", "_ping")
            if not self._auto_pull:
                await self._have_image()
        except (SandboxRefusedError, SandboxUnavailableError) as error:
            return str(error)
        return ""

    async def aclose(self) -> None:
        if self._profile is not None:
            await asyncio.to_thread(self._profile.close)
            self._profile = None
        if self._engine is not None:
            await self._engine.aclose()
            self._engine = None

    def _sandbox(self, session_id: str, env: Mapping[str, str], warnings: Sequence[str]) -> DockerSandbox:
        user = str(self._shared(session_id).uid) if self._shared else "1000"
        return DockerSandbox(
            f"docker-{session_id}",
            self._connected(),
            container_name(session_id),
            user=f"{user}:{user}",
            env=env,
            warnings=warnings,
        )

    def _lock(self, session_id: str) -> asyncio.Lock:
        return self._locks.setdefault(session_id, asyncio.Lock())

    async def _start(self, session_id: str, *, previous_id: str = "") -> list[str]:
        """Find the session's container running, start it, or make it; returns warnings."""
        name = container_name(session_id)
        try:
            found = await self._request("GET", f"containers/{name}/json")
        except EngineError as error:
            if error.status != MISSING:
                raise
        else:
            if not found["State"]["Running"]:
                await self._run(session_id)
            return []
        kept = not self._shared and await self._exists(f"volumes/{volume_name(session_id, 'ws')}")
        await self._have_image()
        await self._make(session_id)
        await self._run(session_id)
        if kept:
            return [REPLACED]
        return [LOST] if previous_id == f"docker-{session_id}" else []

    async def _run(self, session_id: str) -> None:
        await self._request("POST", f"containers/{container_name(session_id)}/start")
        ready = await self._sandbox(session_id, {}, ()).exec(_READY, cwd="/", timeout=timedelta(seconds=30))
        if missing := ready.stdout.decode().split():
            await self._quietly(
                "DELETE", f"containers/{container_name(session_id)}", params={"force": "true"}
            )
            raise SandboxRefusedError(
                f"The image {self._settings.image} lacks {', '.join(missing)}. Use one with them."
            )

    async def _make(self, session_id: str) -> None:
        labels = self._labels(session_id)
        shared = await asyncio.to_thread(self._shared, session_id) if self._shared else None
        for part in () if shared else PLACES:
            volume = {"Name": volume_name(session_id, part), "Labels": labels}
            await self._request("POST", "volumes/create", body=volume)
        try:
            await self._request(
                "POST",
                "containers/create",
                body=self._settings.container(session_id, labels, await self._seccomp(), shared),
                params={"name": container_name(session_id)},
            )
        except EngineError:
            # Another worker was faster; or it is a real failure.
            if not await self._exists(f"containers/{container_name(session_id)}/json"):
                raise

    def _labels(self, session_id: str) -> dict[str, str]:
        return {_MANAGED: "true", _SESSION: session_id, _OWNER: self._owner}

    async def _seccomp(self) -> Sequence[str]:
        if self._profile is None:
            version = await self._request("GET", "version")
            self._profile = await asyncio.to_thread(SeccompOption, version, self._url or find_engine())
        return self._profile.words

    async def _lay_out_skills(self, session_id: str, skills: Mapping[str, Path]) -> None:
        """Put skills which are not there yet into the session's read-only volume."""
        names = [check_skill_hash(name) for name in skills]
        if not names or self._shared:
            return
        sandbox = self._sandbox(session_id, {}, ())
        found = await sandbox.exec("cd /bin/skills && ls -1", timeout=timedelta(seconds=30))
        there = set(found.stdout.decode(errors="replace").split())
        if not (wanted := {name: skills[name] for name in names if name not in there}):
            return
        archive = await asyncio.to_thread(pack_skills, wanted)
        # Never started, so nothing of the agent's runs while the skills can be written.
        helper = f"{container_name(session_id)}-{secrets.token_hex(4)}"
        configuration = self._settings.skills_helper(session_id, {_HELPER: session_id, _OWNER: self._owner})
        try:
            await self._request("POST", "containers/create", body=configuration, params={"name": helper})
            await self._connected().upload(helper, "/skills", archive)
        finally:
            await self._quietly("DELETE", f"containers/{helper}", params={"force": "true"})

    async def _remove_helpers(self, label: str, *, older_than: float = 0.0) -> None:
        params = {"all": "true", "filters": json.dumps({"label": [label]})}
        for container in await self._request("GET", "containers/json", params=params):
            ours = container["Labels"].get(_OWNER) == self._owner
            if ours and _age(container["Created"]) >= older_than:
                await self._quietly("DELETE", f"containers/{container['Id']}", params={"force": "true"})

    async def _have_image(self) -> None:
        """
        Raises:
            SandboxRefusedError: the engine has it not, and may not or could not fetch it.
        """
        if await self._exists(f"images/{self._settings.image}/json"):
            return
        if not self._auto_pull:
            raise SandboxRefusedError(
                f"The engine does not have the image {self._settings.image}. Pull it, or allow pulling."
            )
        try:
            await self._connected().pull(self._settings.image)
        except EngineError as error:
            raise SandboxRefusedError(
                f"The image {self._settings.image} could not be fetched: {error}"
            ) from error

    def _connected(self) -> Engine:
        if self._engine is None:
            self._engine = Engine(self._url or find_engine())
        return self._engine

    async def _request(
        self, method: str, path: str, *, body: Any = None, params: Mapping[str, str] | None = None
    ) -> Any:
        return await self._connected().request(method, path, body=body, params=params)

    async def _exists(self, path: str) -> bool:
        try:
            await self._request("GET", path)
        except EngineError as error:
            if error.status == MISSING:
                return False
            raise
        return True

    async def _quietly(self, method: str, path: str, *, params: Mapping[str, str]) -> None:
        """A request whose object may be gone or done already."""
        try:
            await self._request(method, path, params=params)
        except EngineError as error:
            if error.status not in (304, MISSING):
                raise


def _age(made: int | str) -> float:
    """Seconds since a container was made: Docker tells the moment in seconds, some Podmans as a date."""
    if isinstance(made, str):
        made = int(datetime.fromisoformat(made.split(".")[0].rstrip("Z") + "+00:00").timestamp())
    return time.time() - made
