"""Receiving the zip of a skill: to a file, with its hash, then checked."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

from agent_runner.domain import archives, skills
from agent_runner.domain.archives import ArchiveLimits
from agent_runner.errors import ArtifactError

PIECE: Final = 1 << 18
_MAGIC: Final = b"PK"


@dataclass(frozen=True, slots=True)
class SkillContent:
    """What a checked archive holds."""

    hash: str
    size: int
    skill_md: str
    file_count: int
    warnings: tuple[str, ...] = ()


class ReceivedArchive:
    """An archive in a file without a name, which is gone when it is closed."""

    def __init__(self, file: BinaryIO, limits: ArchiveLimits) -> None:
        self._file = file
        self._limits = limits
        self._sum = hashlib.sha256()
        self.size = 0

    @property
    def hash(self) -> str:
        return self._sum.hexdigest()

    async def take(self, chunk: bytes) -> None:
        """Add bytes.

        Raises:
            ArtifactError: they are too many, or the first ones are no zip's.
        """
        if not chunk:
            return
        if self.size + len(chunk) > self._limits.compressed_bytes:
            raise ArtifactError(f"The archive has more than {self._limits.compressed_bytes} bytes.")
        if self.size < len(_MAGIC):
            start = _MAGIC[self.size :][: len(chunk)]
            if not chunk.startswith(start):
                raise ArtifactError("This is no zip archive.")
        self.size += len(chunk)
        await asyncio.to_thread(self._write, chunk)

    async def inspect(self, name: str) -> SkillContent:
        """Check everything.

        Raises:
            ArtifactError: what is wrong, and in which entry.
        """
        return await asyncio.to_thread(self._inspect, name)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes, from the beginning, in pieces of 256 KiB."""
        offset = 0
        while chunk := await asyncio.to_thread(self._read, offset):
            offset += len(chunk)
            yield chunk

    def _write(self, chunk: bytes) -> None:
        self._sum.update(chunk)
        self._file.write(chunk)

    def _read(self, offset: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(PIECE)

    def _inspect(self, name: str) -> SkillContent:
        entries = archives.read_entries(self._file, self._limits)
        data = b"".join(archives.read_file(self._file, skills.find_skill_md(entries)))
        text = skills.decode_skill_md(data)
        parsed = skills.read_skill_md(text)
        archives.check_contents(self._file, entries)
        return SkillContent(
            hash=self.hash,
            size=self.size,
            skill_md=text,
            file_count=sum(not entry.is_dir for entry in entries),
            warnings=tuple(skills.advice(parsed, name, entries)),
        )


@asynccontextmanager
async def received(
    chunks: AsyncIterator[bytes], limits: ArchiveLimits, directory: Path | None
) -> AsyncIterator[ReceivedArchive]:
    """Take an archive as it arrives.

    Args:
        directory: where the file is made; None: the system's place for temporary files.

    Raises:
        ArtifactError: it is empty, too large, or no zip; the rest is not read then.
    """
    file = await asyncio.to_thread(tempfile.TemporaryFile, dir=directory, prefix="skill-")
    try:
        archive = ReceivedArchive(cast("BinaryIO", file), limits)
        async for chunk in chunks:
            await archive.take(chunk)
        if not archive.size:
            raise ArtifactError("The archive is empty.")
        yield archive
    finally:
        await asyncio.to_thread(file.close)
