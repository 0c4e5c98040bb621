"""The prompt section that tells an agent about its skills (reference: skill-architecture, prompt)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agent_runner.v1.options_pb2 import SkillDisclosure

ROOT: Final = "/bin/skills"
"""Where skills are in every kind of sandbox."""

_HEADING: Final = "## Available Skills"
_FULL: Final = (
    "These skills are at hand. Follow a skill's instructions when the task calls for it. Its files are "
    "below its LOCATION, read-only; run its tools from there by their full path."
)
_PROGRESSIVE: Final = (
    "These skills are at hand. When the task calls for one, read the file SKILL.md below its LOCATION first "
    "and follow it. Its files are there too, read-only; run its tools from there by their full path."
)
_NO_FILES: Final = "The files of this skill are not available in this run; only these instructions are."


@dataclass(frozen=True, slots=True)
class PromptSkill:
    """A skill as the prompt tells it.

    Attributes:
        name: as in its metadata.
        hash: its version; empty when its files could not be brought into the sandbox.
        skill_md: the whole SKILL.md.
        description: from its front matter; empty when there is none.
    """

    name: str
    hash: str
    skill_md: str
    description: str = ""


def location_of(hash: str) -> str:
    """Where a version is in the sandbox, with the `/` at the end."""
    return f"{ROOT}/{hash}/"


def prompt_section(
    skills: Sequence[PromptSkill],
    disclosure: SkillDisclosure.ValueType = SkillDisclosure.SKILL_DISCLOSURE_FULL,
) -> str:
    """The section to put after the instructions, a blank line between; empty without skills.

    Progressive disclosure tells name, description and location alone. A skill without description or
    without files is told in full all the same: the agent could not find out about it otherwise.
    """
    if not skills:
        return ""
    progressive = disclosure == SkillDisclosure.SKILL_DISCLOSURE_PROGRESSIVE
    parts = [_HEADING, _PROGRESSIVE if progressive else _FULL]
    parts += [_told(skill, progressive) for skill in skills]
    return "\n\n".join(parts) + "\n"


def _told(skill: PromptSkill, progressive: bool) -> str:
    brief = progressive and skill.description and skill.hash
    text = skill.description if brief else skill.skill_md.rstrip("\n")
    # A server of another make may know names of several lines.
    head = f"### SKILL: {' '.join(skill.name.split())}\n"
    return (
        f"{head}LOCATION: {location_of(skill.hash)}\n\n{text}"
        if skill.hash
        else f"{head}{_NO_FILES}\n\n{text}"
    )


def with_skills(instructions: str, section: str) -> str:
    """Instructions and section in one prompt."""
    return f"{instructions.rstrip()}\n\n{section}" if section else instructions
