"""What one command may use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on each command, set with `prlimit` before anything of the agent's runs.

    Attributes:
        processes: processes and threads of the session's user at once.
        open_files: descriptors of one process.
        cpu_seconds: processor time of one process.
        file_size: bytes of one file.
        memory: bytes of address space of one process; generous, for runtimes reserve what they never use.
        shared_memory: bytes of `/dev/shm`.
    """

    processes: int = 256
    open_files: int = 1024
    cpu_seconds: int = 600
    file_size: int = 1 << 30
    memory: int = 4 << 30
    shared_memory: int = 64 << 20

    def command(self) -> Sequence[str]:
        """The words to put before a command."""
        return (
            "prlimit",
            f"--nproc={self.processes}",
            f"--nofile={self.open_files}",
            f"--cpu={self.cpu_seconds}",
            f"--fsize={self.file_size}",
            f"--as={self.memory}",
            "--core=0",
            "--",
        )
