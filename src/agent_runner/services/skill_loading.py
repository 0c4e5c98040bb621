"""What a turn needs of its agent's skills: files for the sandbox, text for the prompt, notes for watchers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agent_runner.domain.skill_prompts import PromptSkill, prompt_section
from agent_runner.domain.skills import description_of
from agent_runner.errors import AgentRunnerError, NotFoundError
from agent_runner.ports.skills import SkillFiles, SkillReader, SkillsOnDisk
from agent_runner.v1.options_pb2 import SkillDisclosure
from agent_runner.v1.status_pb2 import UsedSkill
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.skill.v1.api_pb2 import Skill
from ai.stigmer.commons.apiresource.apiresourcekind.api_resource_kind_pb2 import ApiResourceKind
from ai.stigmer.commons.apiresource.enum_pb2 import ApiResourceOwnerScope
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference


@dataclass(frozen=True, slots=True)
class LoadedSkills:
    """The skills of a turn.

    Attributes:
        paths: for `SandboxSpec.skills`.
        sections: what to put after the instructions, by name of the sub-agent, empty for the agent
            itself; nothing for who has no skills.
        used: for the status: what was resolved.
        warnings: for the watcher: what could not be had.
    """

    paths: Mapping[str, Path] = field(default_factory=dict)
    sections: Mapping[str, str] = field(default_factory=dict)
    used: Sequence[UsedSkill] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A reference as far as it matters, and the version an earlier attempt found by it."""

    org: str
    slug: str
    version: str
    everywhere: bool
    pinned: str = ""

    def __str__(self) -> str:
        return f"{self.slug}:{self.version}" if self.version else self.slug


class SkillLoader:
    """Resolves skills, brings them here, and words them."""

    def __init__(self, reader: SkillReader, files: SkillFiles) -> None:
        self._reader = reader
        self._files = files

    @asynccontextmanager
    async def load(self, agent: Agent, *, pinned: Iterable[UsedSkill] = ()) -> AsyncIterator[LoadedSkills]:
        """The agent's skills and its sub-agents'; the files stay for as long as the context is open.

        A skill or an artifact that cannot be had is a warning, and the turn goes on.

        Args:
            pinned: what an earlier attempt of the execution resolved. It is kept to, so that a tag
                which has moved since changes nothing.

        Raises:
            UnavailableError: the control plane is away; try again.
        """
        wanted = _wanted(agent, pinned)
        found = await self._resolve(dict.fromkeys(one for ones in wanted.values() for one in ones))
        skills = [one for one in found.values() if isinstance(one, Skill)]
        async with self._files.use(skills) as files:
            disclosure = agent.spec.options.skill_disclosure
            brief = disclosure == SkillDisclosure.SKILL_DISCLOSURE_PROGRESSIVE
            shown = {one: _shown(s, files, brief) for one, s in found.items() if isinstance(s, Skill)}
            yield LoadedSkills(
                paths=files.paths,
                sections={
                    name: prompt_section(
                        list(dict.fromkeys(shown[one] for one in ones if one in shown)), disclosure
                    )
                    for name, ones in wanted.items()
                },
                used=[_used(one, skill) for one, skill in found.items() if isinstance(skill, Skill)],
                warnings=[*_missing(found), *_without_files(skills, files)],
            )

    async def _resolve(self, wanted: Iterable[_Wanted]) -> dict[_Wanted, Skill | str]:
        """Per reference the skill, or why there is none."""
        async with asyncio.TaskGroup() as tasks:
            running = {one: tasks.create_task(self._resolve_one(one)) for one in wanted}
        found: dict[_Wanted, Skill | str] = {}
        for one, task in running.items():
            if isinstance(outcome := task.result(), AgentRunnerError):
                raise outcome
            found[one] = outcome
        return found

    async def _resolve_one(self, wanted: _Wanted) -> Skill | str | AgentRunnerError:
        reference = ApiResourceReference(
            org=wanted.org,
            kind=ApiResourceKind.skill,
            slug=wanted.slug,
            version=wanted.pinned or wanted.version,
        )
        try:
            try:
                return await self._reader.skill(reference)
            except NotFoundError:
                if not (wanted.everywhere and wanted.org):
                    raise
                reference.org = ""
                return await self._reader.skill(reference)
        except AgentRunnerError as error:
            # What another try may mend is raised later: here, it would come wrapped in a group.
            return error if error.retryable else str(error)


def _wanted(agent: Agent, pinned: Iterable[UsedSkill]) -> dict[str, list[_Wanted]]:
    """What is referred to, by name of the sub-agent."""
    pins = {(one.org, one.name, one.version): one.hash for one in pinned}
    anywhere = {(name, version): hash for (_, name, version), hash in pins.items()}

    def one(reference: ApiResourceReference) -> _Wanted:
        org = reference.org or agent.metadata.org
        everywhere = not reference.org and reference.scope == ApiResourceOwnerScope.platform
        known = (reference.slug, reference.version)
        hash = pins.get((org, *known)) or (anywhere.get(known, "") if everywhere or not org else "")
        return _Wanted(org, reference.slug, reference.version, everywhere, hash)

    references = {"": agent.spec.skill_refs} | {sub.name: sub.skill_refs for sub in agent.spec.sub_agents}
    return {name: [one(reference) for reference in refs] for name, refs in references.items() if refs}


def _shown(skill: Skill, files: SkillsOnDisk, brief: bool) -> PromptSkill:
    hash = skill.status.version_hash
    return PromptSkill(
        name=skill.metadata.name or skill.metadata.slug,
        hash=hash if hash in files.paths else "",
        skill_md=skill.spec.skill_md,
        description=description_of(skill.spec.skill_md) if brief else "",
    )


def _used(wanted: _Wanted, skill: Skill) -> UsedSkill:
    return UsedSkill(
        name=wanted.slug, version=wanted.version, hash=skill.status.version_hash, org=skill.metadata.org
    )


def _missing(found: Mapping[_Wanted, Skill | str]) -> list[str]:
    return [
        f"Skill {one} is not available and was left out: {outcome}"
        for one, outcome in found.items()
        if isinstance(outcome, str)
    ]


def _without_files(skills: Sequence[Skill], files: SkillsOnDisk) -> list[str]:
    names = {skill.status.version_hash: skill.metadata.slug for skill in skills}
    return [
        f"Skill {names.get(hash, hash)} has its instructions only, its files are not available: {problem}"
        for hash, problem in files.problems.items()
    ]
