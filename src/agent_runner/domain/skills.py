"""Rules about skills: versions and tags, SKILL.md and its front matter, keys of artifacts.

Versions follow the reference (skill-architecture): a version is the SHA-256 of the zip and never
changes, tags move. Front matter follows the Agent Skills specification (agentskills.io/specification).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from agent_runner.domain.archives import Entry
from agent_runner.domain.ids import make_id
from agent_runner.domain.slugs import slug_of
from agent_runner.errors import ArtifactError, InvalidRequestError

SKILL_MD: Final = "SKILL.md"
MAX_SKILL_MD_BYTES: Final = 1 << 20
MAX_FRONT_MATTER_BYTES: Final = 64 << 10
LATEST: Final = "latest"
ULID_DIGITS: Final = "0123456789abcdefghjkmnpqrstvwxyz"

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_TAG: Final = re.compile(r"[A-Za-z0-9._-]+")
_KEY: Final = re.compile(
    r"skills/(?:[A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*/)?([0-9a-f]{64})\.zip"
)
_PLAIN_ORG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FRONT_MATTER: Final = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*$\n?", re.DOTALL | re.MULTILINE)


# -- versions ---------------------------------------------------------------------------------------


class Asked(Enum):
    """What kind of version a reference asks for."""

    CURRENT = "current"
    TAG = "tag"
    HASH = "hash"


def asked_of(version: str) -> Asked:
    """Empty and `latest` mean the current version, 64 hexadecimal digits a hash, all else a tag."""
    if version in ("", LATEST):
        return Asked.CURRENT
    return Asked.HASH if is_hash(version) else Asked.TAG


def is_hash(text: str) -> bool:
    return _HASH.fullmatch(text) is not None


def check_tag(tag: str) -> None:
    """A push may come without a tag.

    Raises:
        InvalidRequestError: the tag could not be asked for.
    """
    if tag and _TAG.fullmatch(tag) is None:
        raise InvalidRequestError.of("tag", f"{tag!r} has more in it than letters, digits, `.`, `_` and `-`")
    if _HASH.fullmatch(tag.lower()):
        raise InvalidRequestError.of("tag", "64 hexadecimal digits would be taken for the hash of a version")


@dataclass(frozen=True, slots=True)
class Version:
    """One entry in a skill's history. `id` sorts by time."""

    id: str
    hash: str
    tag: str


def resolve(version: str, current: Version, archived: Sequence[Version]) -> Version | None:
    """The version that is meant: the current one where it fits, else the newest archived that does.

    Args:
        version: as in a reference.
        archived: in any order; may hold the current one too.
    """
    asked = asked_of(version)
    if asked is Asked.CURRENT:
        return current

    def fits(one: Version) -> bool:
        return version == (one.hash if asked is Asked.HASH else one.tag)

    if fits(current):
        return current
    return max(filter(fits, archived), key=lambda one: one.id, default=None)


def later_id(id: str, before: str) -> str:
    """`id`, or the next one after `before` where a clock that runs late made `id` sort before it."""
    if id > before:
        return id
    prefix, _, digits = before.partition("-")
    value = 0
    for digit in digits:
        value = value * 32 + ULID_DIGITS.index(digit)
    return make_id(prefix, value + 1)


# -- artifacts --------------------------------------------------------------------------------------


def artifact_key(org: str, slug: str, hash: str) -> str:
    """`skills/{org}/{slug}/{hash}.zip`; `_` for no organization, `_x` and its hash for an unfit one."""
    if not org:
        part = "_"
    elif _PLAIN_ORG.fullmatch(org) and len(org) <= 200:
        part = org
    else:
        part = f"_x{hashlib.sha256(org.encode()).hexdigest()}"
    return f"skills/{part}/{slug}/{hash}.zip"


def hash_in_key(key: str) -> str:
    """The hash of the bytes a key stands for. `skills/{hash}.zip`, the reference's form, counts too.

    Raises:
        InvalidRequestError: it is not the key of a skill's artifact.
    """
    if (match := _KEY.fullmatch(key)) is None:
        raise InvalidRequestError.of(
            "artifact_storage_key",
            f"{key[:200]!r} is not the key of a skill; see its status.artifact_storage_key",
        )
    return match.group(1)


# -- SKILL.md ---------------------------------------------------------------------------------------


def find_skill_md(entries: Iterable[Entry]) -> Entry:
    """The entry at the top of the archive.

    Raises:
        ArtifactError: there is none, or it cannot be one; says where it may have gone.
    """
    close = ""
    for entry in entries:
        if entry.name == SKILL_MD and not entry.is_dir:
            if entry.size > MAX_SKILL_MD_BYTES:
                raise ArtifactError(f"SKILL.md has {entry.size} bytes; {MAX_SKILL_MD_BYTES} are the most.")
            return entry
        if not close and entry.name.rsplit("/", 1)[-1].lower() == "skill.md":
            close = f" There is {entry.name!a}: put it at the top, named SKILL.md."
    raise ArtifactError(f"The archive has no SKILL.md at its top.{close}")


def decode_skill_md(data: bytes) -> str:
    """The text of SKILL.md.

    Raises:
        ArtifactError: empty, too long, or no text in UTF-8.
    """
    if len(data) > MAX_SKILL_MD_BYTES:
        raise ArtifactError(f"SKILL.md has {len(data)} bytes; {MAX_SKILL_MD_BYTES} are the most.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"SKILL.md is not UTF-8: byte {error.start} is wrong.") from None
    if "\x00" in text:
        raise ArtifactError("SKILL.md has NUL characters in it.")
    if not text.strip():
        raise ArtifactError("SKILL.md is empty.")
    return text


@dataclass(frozen=True, slots=True)
class FrontMatter:
    """What SKILL.md says about itself, by the Agent Skills specification."""

    name: str
    description: str
    license: str = ""
    compatibility: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    allowed_tools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SkillText:
    """SKILL.md, read.

    Attributes:
        front_matter: None when there is none.
        body: what follows it.
        warnings: what should be better.
    """

    front_matter: FrontMatter | None
    body: str
    warnings: tuple[str, ...] = ()


def read_skill_md(text: str) -> SkillText:
    """Take SKILL.md apart.

    Raises:
        ArtifactError: the front matter breaks the specification; names the field.
    """
    text = text.replace("\r\n", "\n")
    if not re.match(r"---[ \t]*\n", text):
        return SkillText(None, text, ("SKILL.md has no front matter with name and description.",))
    match = _FRONT_MATTER.match(text)
    if match is None:
        raise ArtifactError("SKILL.md: the front matter has no closing `---`.")
    warnings: list[str] = []
    front_matter = _front_matter(_mapping(match.group(1)), warnings)
    body = text[match.end() :]
    if not body.strip():
        warnings.append("SKILL.md has front matter but no instructions.")
    return SkillText(front_matter, body, tuple(warnings))


def description_of(text: str) -> str:
    """The description in the front matter; empty where there is none, or it cannot be read."""
    try:
        front_matter = read_skill_md(text).front_matter
    except ArtifactError:
        return ""  # pushed to a server that does not check
    return front_matter.description if front_matter is not None else ""


def _mapping(source: str) -> Mapping[Any, Any]:
    if len(source.encode()) > MAX_FRONT_MATTER_BYTES:
        raise ArtifactError(f"SKILL.md: the front matter has over {MAX_FRONT_MATTER_BYTES} bytes.")
    # Imported with the first front matter: 1.5 MiB, which most processes never need.
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        loaded = YAML(typ="safe", pure=True).load(source)
    except (YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        # The first line of the file is the opening `---`.
        where = f", line {mark.line + 2}" if mark is not None else ""
        raise ArtifactError(f"SKILL.md: the front matter is not YAML{where}: {problem}.") from None
    except RecursionError:
        raise ArtifactError("SKILL.md: the front matter is nested too deeply.") from None
    if not isinstance(loaded, Mapping):
        raise ArtifactError("SKILL.md: the front matter must be `name: value` lines.")
    return loaded


def _front_matter(values: Mapping[Any, Any], warnings: list[str]) -> FrontMatter:
    known = ("name", "description", "license", "compatibility", "metadata", "allowed-tools")
    if extra := sorted(str(key) for key in values if key not in known):
        warnings.append(f"The Agent Skills specification does not know: {', '.join(extra)}.")
    name = _text(values, "name", most=64, required=True)
    if problem := _name_problem(name):
        raise ArtifactError(f"SKILL.md: name {name!a} {problem}.")
    return FrontMatter(
        name=name,
        description=_text(values, "description", most=1024, required=True),
        license=_text(values, "license"),
        compatibility=_text(values, "compatibility", most=500),
        metadata=_metadata(values.get("metadata"), warnings),
        allowed_tools=_tools(values.get("allowed-tools"), warnings),
    )


def _text(values: Mapping[Any, Any], key: str, *, most: int = 0, required: bool = False) -> str:
    value = values.get(key)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or not value.strip():
        what = "is missing" if value is None else "must be text" if not isinstance(value, str) else "is empty"
        raise ArtifactError(f"SKILL.md: {key} {what}.")
    if most and len(value) > most:
        raise ArtifactError(f"SKILL.md: {key} has {len(value)} characters; {most} are the most.")
    return value.strip()


def _name_problem(name: str) -> str:
    plain = unicodedata.normalize("NFKC", name)
    if plain != plain.lower():
        return "must be in lower case"
    if not all(c.isalnum() or c == "-" for c in plain):
        return "may have letters, digits and hyphens only"
    if plain.startswith("-") or plain.endswith("-"):
        return "must not begin or end with a hyphen"
    return "must not have two hyphens in a row" if "--" in plain else ""


def _metadata(value: object, warnings: list[str]) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ArtifactError("SKILL.md: metadata must be `name: text` lines.")
    result = {}
    for key, item in value.items():
        if isinstance(item, Mapping | list):
            raise ArtifactError(f"SKILL.md: metadata.{key} must be text.")
        if not isinstance(item, str):
            warnings.append(f"metadata.{key} is not text; put it in quotes.")
        result[str(key)] = str(item)
    return result


def _tools(value: object, warnings: list[str]) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        warnings.append("allowed-tools should be one text, its names separated by spaces.")
        return tuple(value)
    if not isinstance(value, str):
        raise ArtifactError("SKILL.md: allowed-tools must be names separated by spaces.")
    return tuple(value.split())


# -- a whole archive --------------------------------------------------------------------------------


def advice(text: SkillText, name: str, entries: Sequence[Entry]) -> list[str]:
    """What a skill should do better, beyond what is wrong: for `skill lint` and answers to a push."""
    found = list(text.warnings)
    if text.front_matter is not None and slug_of(text.front_matter.name) != slug_of(name):
        found.append(
            f"The front matter calls the skill {text.front_matter.name!r}, but it is pushed as {name!r}."
        )
    if len(lines := text.body.splitlines()) > 500:
        found.append(f"SKILL.md has {len(lines)} lines; over 500, move details to files beside it.")
    names = {entry.name for entry in entries}
    for target in sorted(set(re.findall(r"\]\(([^)#\s]+)", text.body))):
        if (
            "://" not in target
            and not target.startswith(("mailto:", "/"))
            and target.rstrip("/") not in names
        ):
            found.append(f"SKILL.md refers to {target!r}, which is not in the skill.")
    return found
