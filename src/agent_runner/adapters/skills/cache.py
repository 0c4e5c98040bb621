"""Skills' files on this host, downloaded once and kept by hash.

Several workers may share the directory. Whoever uses a version holds its `use` lock shared; whoever
brings it here holds its `install` lock, and replaces files by renames, which those who use the old ones
do not notice; whoever makes room removes only what it can hold the `use` lock of alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Final

import structlog

from agent_runner.adapters.skills._locks import SharedLocks, alone, try_alone
from agent_runner.adapters.skills.trees import SkillTrees
from agent_runner.domain.archives import ArchiveLimits
from agent_runner.domain.skills import is_hash
from agent_runner.errors import AgentRunnerError, ArtifactError, NotFoundError
from agent_runner.ports.skills import SkillReader, SkillsOnDisk
from ai.stigmer.agentic.skill.v1.api_pb2 import Skill

log = structlog.get_logger(__name__)

DEFAULT_BYTES: Final = 4 << 30
DEFAULT_PARALLEL: Final = 8


class SkillCache:
    """A SkillFiles on disk.

    Args:
        root: directory of its own, made when missing.
        reader: where artifacts come from.
        most_bytes: what extracted skills may take up; those not used for longest go first. What is in
            use stays, so the bound is soft.
        parallel: downloads at a time.
    """

    def __init__(
        self,
        root: Path,
        reader: SkillReader,
        *,
        most_bytes: int = DEFAULT_BYTES,
        parallel: int = DEFAULT_PARALLEL,
        limits: ArchiveLimits | None = None,
    ) -> None:
        self._limits = limits or ArchiveLimits()
        self._trees = SkillTrees(root, self._limits)
        self._reader = reader
        self._most_bytes = most_bytes
        self._downloads = asyncio.Semaphore(parallel)
        self._uses = SharedLocks()
        self._prepared = False

    @asynccontextmanager
    async def use(self, skills: Sequence[Skill]) -> AsyncIterator[SkillsOnDisk]:
        wanted = {skill.status.version_hash: skill.status.artifact_storage_key for skill in skills}
        if wanted and not self._prepared:
            await asyncio.to_thread(self._trees.prepare)
            self._prepared = True
        async with AsyncExitStack() as leases:
            problems = await self._bring_all(wanted, leases)
            paths = {hash: self._trees.path(hash) for hash in wanted if hash not in problems}
            yield SkillsOnDisk(paths, problems)

    async def _bring_all(self, wanted: dict[str, str], leases: AsyncExitStack) -> dict[str, str]:
        """Bring each version here, side by side; returns what could not be had, and why."""
        problems = {hash: f"{hash[:80]!r} is no version." for hash in wanted if not is_hash(hash)}
        hashes = [hash for hash in wanted if hash not in problems]
        for hash in hashes:
            await leases.enter_async_context(self._uses.hold(self._trees.lock(hash, "use")))
        here = await asyncio.to_thread(self._trees.intact_of, hashes)
        async with asyncio.TaskGroup() as tasks:
            bringing = {
                hash: tasks.create_task(self._bring(hash, wanted[hash]))
                for hash in hashes
                if hash not in here
            }
        for hash, task in bringing.items():
            if isinstance(outcome := task.result(), AgentRunnerError):
                raise outcome
            if outcome:
                problems[hash] = outcome
        return problems

    async def _bring(self, hash: str, key: str) -> str | AgentRunnerError:
        """Bring the files of a version here; returns why they cannot be, or nothing.

        What another try may mend is returned too: raised, it would come wrapped in a group.
        """
        async with alone(self._trees.lock(hash, "install")):
            if await asyncio.to_thread(self._trees.intact_of, [hash]):
                return ""  # somebody else was faster
            try:
                async with self._downloads:
                    await self._install(hash, key)
            except NotFoundError:
                return "The artifact is not in its store."
            except AgentRunnerError as error:
                return error if error.retryable else str(error)
            except OSError as error:
                return f"The files could not be written: {error.strerror}."
        await asyncio.to_thread(self._make_room)
        return ""

    async def _install(self, hash: str, key: str) -> None:
        file = await asyncio.to_thread(self._trees.scratch_file)
        try:
            size = await self._download(key, hash, file)
            await asyncio.to_thread(self._trees.extract, hash, file)
        finally:
            await asyncio.to_thread(file.close)
        log.info("skill installed", hash=hash, bytes=size)

    async def _download(self, key: str, hash: str, file: BinaryIO) -> int:
        """Write the artifact to the file; returns its size.

        Raises:
            ArtifactError: it is too large, or not the one of the hash.
        """
        size, seen = 0, hashlib.sha256()
        async for chunk in self._reader.artifact(key):
            size += len(chunk)
            if size > self._limits.compressed_bytes:
                raise ArtifactError(f"The artifact has more than {self._limits.compressed_bytes} bytes.")
            seen.update(chunk)
            await asyncio.to_thread(file.write, chunk)
        if seen.hexdigest() != hash:
            raise ArtifactError("The artifact is not what was pushed: its hash is wrong.")
        return size

    def _make_room(self) -> None:
        usage = self._trees.usage()
        total = sum(one.size for one in usage)
        for one in usage:
            if total <= self._most_bytes:
                return
            lock = try_alone(self._trees.lock(one.hash, "use"))
            if lock is None:
                continue
            try:
                self._trees.remove(one.hash)
            finally:
                os.close(lock)
            total -= one.size
