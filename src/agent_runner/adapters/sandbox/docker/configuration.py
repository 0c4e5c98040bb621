"""What a session's container is made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent_runner.adapters.sandbox.shared import SharedDirectories

PLACES = {"ws": "/workspace", "tmp": "/tmp", "skills": "/bin/skills"}  # noqa: S108 - the sandbox's own

# As PID 1, bash takes in and reaps what commands leave behind.
_WAIT = """\
trap 'exit 0' TERM
while :; do sleep 3600 & wait $!; done
"""
_OWN = "chown 1000:1000 /workspace /tmp && chmod 0700 /workspace && chmod 1777 /tmp || exit 1\n"


@dataclass(frozen=True, slots=True)
class ContainerLimits:
    """What a session's container may use, all its commands together.

    Attributes:
        memory: bytes, without swap.
        cpus: processors.
        processes: processes and threads.
        open_files: descriptors of one process.
    """

    memory: int = 2 << 30
    cpus: float = 2.0
    processes: int = 256
    open_files: int = 1024


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """All that is the same for every container of a provider."""

    image: str
    network: str
    limits: ContainerLimits
    runtime: str
    extra_ro_paths: Sequence[str]

    def container(
        self,
        session_id: str,
        labels: Mapping[str, str],
        seccomp: Sequence[str],
        shared: SharedDirectories | None,
    ) -> dict[str, Any]:
        """The body of the request that makes a session's container."""
        return {
            "Image": self.image,
            "Entrypoint": [],
            "Cmd": ["bash", "-c", _WAIT if shared else _OWN + _WAIT],
            "User": "0:0",
            "WorkingDir": "/",
            "Hostname": "sandbox",
            "Labels": dict(labels),
            "HostConfig": self._host(session_id, seccomp, shared),
        }

    def _host(
        self, session_id: str, seccomp: Sequence[str], shared: SharedDirectories | None
    ) -> dict[str, Any]:
        limits = self.limits
        host = {
            "NetworkMode": self.network,
            "CapDrop": ["ALL"],
            # For the one chown at the start; commands run as another user and have none.
            "CapAdd": ["CHOWN", "FOWNER"],
            "SecurityOpt": ["no-new-privileges", *seccomp],
            "ReadonlyRootfs": True,
            "Memory": limits.memory,
            "MemorySwap": limits.memory,
            "NanoCpus": int(limits.cpus * 1e9),
            "PidsLimit": limits.processes,
            "Ulimits": [
                {"Name": "nofile", "Soft": limits.open_files, "Hard": limits.open_files},
                {"Name": "nproc", "Soft": limits.processes * 2, "Hard": limits.processes * 2},
                {"Name": "core", "Soft": 0, "Hard": 0},
            ],
            "Binds": [f"{path}:{path}:ro" for path in self.extra_ro_paths],
            "Mounts": mounts(session_id, shared),
        }
        if self.runtime:
            host["Runtime"] = self.runtime
        return host

    def skills_helper(self, session_id: str, labels: Mapping[str, str]) -> dict[str, Any]:
        """A container that never starts, with the skills' volume writable at `/skills`."""
        mount = {"Type": "volume", "Source": volume_name(session_id, "skills"), "Target": "/skills"}
        return {
            "Image": self.image,
            "Cmd": ["true"],
            "Labels": dict(labels),
            "HostConfig": {"NetworkMode": "none", "Mounts": [mount]},
        }


def mounts(session_id: str, shared: SharedDirectories | None) -> list[dict[str, Any]]:
    """The session's three places: volumes of its own, or directories of the host it shares."""
    kind = "bind" if shared else "volume"
    sources = {part: volume_name(session_id, part) for part in PLACES}
    if shared:
        sources = {"ws": str(shared.workspace), "tmp": str(shared.tmp), "skills": str(shared.skills)}
    return [
        {"Type": kind, "Source": sources[part], "Target": target, "ReadOnly": part == "skills"}
        for part, target in PLACES.items()
    ]


def container_name(session_id: str) -> str:
    return f"ar-{session_id}"


def volume_name(session_id: str, part: str) -> str:
    return f"ar-{session_id}-{part}"
