"""What a skill may be, by the settings."""

from __future__ import annotations

from agent_runner.domain.archives import ArchiveLimits
from agent_runner.settings import Settings


def skill_limits(settings: Settings) -> ArchiveLimits:
    return ArchiveLimits(
        compressed_bytes=settings.skill_archive_bytes,
        uncompressed_bytes=settings.skill_unpacked_bytes,
        entries=settings.skill_entries,
    )
