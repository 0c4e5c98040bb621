"""Where a runner gets skills from, and where it keeps their files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ai.stigmer.agentic.skill.v1.api_pb2 import Skill
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference


class SkillReader(Protocol):
    """Reads skills from the control plane.

    Raises:
        NotFoundError: there is none.
        UnavailableError: the control plane cannot be reached; try again.
    """

    async def skill(self, reference: ApiResourceReference) -> Skill:
        """The version a reference means; without an organization, of the oldest skill with the slug."""
        ...

    def artifact(self, key: str) -> AsyncIterator[bytes]:
        """Stream the bytes of a version. Whether they are the right ones is for the caller to check."""
        ...


@dataclass(frozen=True, slots=True)
class SkillsOnDisk:
    """Extracted skills.

    Attributes:
        paths: hash to a directory with the extracted, verified files; for `SandboxSpec.skills`.
        problems: hash to why its files are not there, in words for people.
    """

    paths: Mapping[str, Path] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


class SkillFiles(Protocol):
    """Files of skills on this host, by hash, shared by all that run here."""

    def use(self, skills: Sequence[Skill]) -> AbstractAsyncContextManager[SkillsOnDisk]:
        """Bring the files of each version here; they stay for as long as the context is open.

        Entering raises UnavailableError when the control plane is away: then nothing is known about
        any of them. A skill whose artifact is gone or broken is a problem instead, and the others go on.
        """
        ...
