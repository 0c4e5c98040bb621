"""Skills: pushed once, versioned by content, found by tag or hash."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from agent_runner.domain import skills as rules
from agent_runner.domain.archives import ArchiveLimits
from agent_runner.domain.ids import canonical_id, is_id
from agent_runner.domain.kinds import AGENT, API_VERSION, SKILL
from agent_runner.domain.paging import MOST, PageRequest
from agent_runner.domain.references import lookup_of
from agent_runner.errors import (
    AlreadyExistsError,
    ArtifactError,
    ConflictError,
    FailedPreconditionError,
    InvalidRequestError,
    LimitReachedError,
    NotFoundError,
)
from agent_runner.ports.artifacts import ArtifactStore
from agent_runner.ports.stores import ResourceKey, ResourceStore, StoredResource
from agent_runner.services._clocks import Clock, NewId
from agent_runner.services._skill_archives import PIECE, ReceivedArchive, SkillContent, received
from agent_runner.services.resources import _TRIES, Page, ResourceService, touch
from agent_runner.services.validation import validate
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.skill.v1.api_pb2 import Skill
from ai.stigmer.agentic.skill.v1.status_pb2 import SkillState
from ai.stigmer.commons.apiresource.enum_pb2 import ApiResourceOwnerScope
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference

log = structlog.get_logger(__name__)

VERSION_KIND: Final = "skill_version"
"""Kind in the store of what a skill was before; the body is the whole Skill."""
VERSION_PREFIX: Final = "skv"
_SHORT_HASH: Final = 8


@dataclass(frozen=True, slots=True)
class Push:
    """A push without its bytes; fields as in `agent_runner.v1.PushSkillHeader`."""

    name: str
    org: str = ""
    scope: int = 0
    tag: str = ""
    hash: str = ""
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did; `new_version` is False when the skill had the version already."""

    skill: Skill
    new_version: bool
    warnings: tuple[str, ...] = ()


class SkillService(ResourceService[Skill]):
    """Keeps the current state of each skill, an archive of what it was, and the bytes of each version.

    Storing a skill's current state is the one step that makes a push or a rollback happen: the version
    and its tag move together. The state before is archived ahead of it, under an id made with it, so
    that repeating does no harm; bytes without a version are removed again.

    Args:
        spool: directory for archives as they arrive; None: the system's.
    """

    def __init__(
        self,
        store: ResourceStore,
        artifacts: ArtifactStore,
        *,
        clock: Clock,
        new_id: NewId,
        limits: ArchiveLimits | None = None,
        spool: Path | None = None,
    ) -> None:
        super().__init__(SKILL, store, clock=clock, new_id=new_id)
        self._artifacts = artifacts
        self._limits = limits or ArchiveLimits()
        self._spool = spool

    # -- push ---------------------------------------------------------------------------------------

    async def push(self, push: Push, chunks: AsyncIterator[bytes]) -> Pushed:
        """Check an archive and make it the skill's current version.

        `chunks` is not read at all when `push.hash` names a version the skill has.

        Raises:
            InvalidRequestError: a field or the archive is wrong; nothing was stored.
        """
        blank = self._blank(push)
        if push.hash and (known := await self._known(blank, push.hash)) is not None:
            return await self._publish(push, blank, known)
        try:
            async with received(chunks, self._limits, self._spool) as archive:
                if push.hash and push.hash != archive.hash:
                    raise ArtifactError(f"The bytes have the hash {archive.hash}, not {push.hash}.")
                return await self._take(push, blank, archive)
        except ArtifactError as error:
            raise InvalidRequestError.of("artifact", str(error)) from error

    async def _take(self, push: Push, blank: Skill, archive: ReceivedArchive) -> Pushed:
        known = await self._find_version(blank, archive.hash)
        content = _content_of(known) if known is not None else await archive.inspect(push.name)
        if push.dry_run:
            return await self._publish(push, blank, content)
        key = rules.artifact_key(blank.metadata.org, blank.metadata.slug, content.hash)
        async with self._locks.hold(key):
            # Known bytes are written again all the same: it heals an artifact that was lost or altered.
            await self._artifacts.put(key, archive.chunks())
            try:
                return await self._publish(push, blank, content)
            except BaseException:
                if await self._find_version(blank, content.hash) is None:
                    await self._artifacts.delete(key)
                raise

    async def _publish(self, push: Push, blank: Skill, content: SkillContent) -> Pushed:
        """Make the content current, unless it is with this very tag."""
        metadata = blank.metadata
        async with self._locks.hold(f"{metadata.org}/{metadata.slug}"):
            for _ in range(_TRIES):
                stored = await self._store.find(SKILL.name, metadata.org, metadata.slug)
                before = None if stored is None else self._parse(stored)
                if before is not None and _is_current(before, content.hash, push.tag):
                    return Pushed(before, new_version=False, warnings=content.warnings)
                new = await self._find_version(blank, content.hash) is None
                skill = self._next(blank, before, content, push.tag)
                if push.dry_run:
                    return Pushed(skill, new, content.warnings)
                if await self._swap(skill, before, 0 if stored is None else stored.version):
                    log.info("skill pushed", skill_id=skill.metadata.id, hash=content.hash, tag=push.tag)
                    return Pushed(skill, new, content.warnings)
        raise ConflictError(SKILL.name, metadata.slug, 0)

    async def _swap(self, skill: Skill, before: Skill | None, expected: int) -> bool:
        """Archive what was, store what is; False when someone else wrote first."""
        try:
            if before is not None:
                await self._archive(before)
            await self._store.put(self._stored(skill, _fields(skill)), expected=expected)
        except (ConflictError, AlreadyExistsError):
            return False
        return True

    async def _archive(self, skill: Skill) -> None:
        resource = StoredResource(
            ResourceKey(VERSION_KIND, skill.status.version_id),
            skill.metadata.org,
            "",
            skill.SerializeToString(),
            fields=_fields(skill),
        )
        try:
            await self._store.put(resource, expected=0)
        except AlreadyExistsError:
            return  # by an attempt before, or by whoever writes at the same time

    def _blank(self, push: Push) -> Skill:
        """The skill a push is about, without content; checks its fields."""
        rules.check_tag(push.tag)
        skill = Skill(api_version=API_VERSION, kind=SKILL.kind)
        scope = push.scope or ApiResourceOwnerScope.organization
        skill.metadata.name, skill.metadata.org = push.name, push.org
        skill.metadata.owner_scope = ApiResourceOwnerScope.ValueType(scope)
        validate(skill.metadata)
        if not push.name.isprintable():
            raise InvalidRequestError.of("name", "must be one line of printable characters")
        if scope not in (ApiResourceOwnerScope.platform, ApiResourceOwnerScope.organization):
            raise InvalidRequestError.of("scope", "must be platform or organization")
        try:
            skill.metadata.slug = self._slug_for(skill)
        except InvalidRequestError as error:
            raise InvalidRequestError.of("name", error.violations[0].problem) from None
        return skill

    def _next(self, blank: Skill, before: Skill | None, content: SkillContent, tag: str) -> Skill:
        """The state after a push: content and tag are new, id, labels and time of creation stay."""
        if before is None:
            skill = self._fresh(blank, blank.metadata.slug)
        else:
            skill = self._copy(before)
            skill.metadata.name = blank.metadata.name
            skill.metadata.owner_scope = blank.metadata.owner_scope
            touch(skill.status.audit, "spec_audit", self._clock)
            touch(skill.status.audit, "status_audit", self._clock)
        skill.spec.skill_md = content.skill_md
        skill.spec.tag = tag
        status = skill.status
        status.version_hash = content.hash
        status.artifact_storage_key = rules.artifact_key(
            skill.metadata.org, skill.metadata.slug, content.hash
        )
        status.state = SkillState.SKILL_STATE_READY
        status.size_bytes = content.size
        status.file_count = content.file_count
        status.version_id = rules.later_id(
            self._new_id(VERSION_PREFIX), before.status.version_id if before else ""
        )
        return skill

    async def _known(self, blank: Skill, hash: str) -> SkillContent | None:
        found = await self._find_version(blank, hash)
        if found is None or not await self._artifacts.exists(found.status.artifact_storage_key):
            return None
        return _content_of(found)

    # -- versions -----------------------------------------------------------------------------------

    async def get_by_reference(self, reference: ApiResourceReference) -> Skill:
        """The version a reference means: current first, then the archive.

        Raises:
            InvalidRequestError: the reference has no slug or means another kind.
            NotFoundError: no such skill, or none of its versions is meant; names `slug:version`.
        """
        validate(reference)
        lookup = lookup_of(reference, SKILL)
        stored = await self._store.find(SKILL.name, lookup.org, lookup.slug)
        named = f"{lookup.slug}:{lookup.version}" if lookup.version else lookup.slug
        if stored is None:
            place = f"Organization {lookup.org!r} has none of this name." if lookup.org else ""
            raise NotFoundError(SKILL.name, named, place)
        found = await self._resolve(self._parse(stored), lookup.version)
        if found is None:
            raise NotFoundError(SKILL.name, named, "The skill is there, but not in this version.")
        return found

    async def history(self, org: str, skill: str, page: PageRequest) -> Page[Skill]:
        """What a skill was, newest first, beginning with what it is.

        Args:
            skill: slug or id.
            page: its `before` is a `version_id`.
        """
        current = await self.named(org, skill)
        found = [current] if page.before is None or current.status.version_id < page.before else []
        wanted = page.skip + page.size + 1
        rows = await self._store.list(
            VERSION_KIND,
            fields={"skill_id": current.metadata.id},
            limit=wanted,
            before=page.before,
        )
        # A push that another one overtook has archived the state that still is current.
        found += [one for one in map(self._parse, rows) if one.status.version_id != current.status.version_id]
        items = found[page.skip : page.skip + page.size]
        return Page(items, items[-1].status.version_id if len(found) >= wanted and items else "")

    async def rollback(self, org: str, skill: str, version: str, *, tag: str = "") -> Skill:
        """Make an earlier version current again.

        Args:
            version: tag, hash, or the first 8 or more digits of a hash.
            tag: tag to move to it; empty: the one it had.

        Raises:
            NotFoundError: no such skill or version.
            FailedPreconditionError: its bytes are gone, or the digits mean several versions.
        """
        rules.check_tag(tag)
        for _ in range(_TRIES):
            current = await self.named(org, skill)
            stored = await self._store.get(ResourceKey(SKILL.name, current.metadata.id))
            current = self._parse(stored)
            target = await self._target(current, version)
            wanted = tag or target.spec.tag
            if _is_current(current, target.status.version_hash, wanted):
                return current
            if not await self._artifacts.exists(target.status.artifact_storage_key):
                raise FailedPreconditionError(
                    f"The bytes of {target.status.version_hash[:12]} are gone. Push them again."
                )
            after = self._next(current, current, _content_of(target), wanted)
            if await self._swap(after, current, stored.version):
                log.info("skill rolled back", skill_id=after.metadata.id, hash=after.status.version_hash)
                return after
        raise ConflictError(SKILL.name, skill, 0)

    async def _target(self, current: Skill, version: str) -> Skill:
        found = await self._resolve(current, version)
        if found is None and len(version) >= _SHORT_HASH:
            matches = {s.status.version_hash: s for s in await self._versions(current, version.lower())}
            if len(matches) > 1:
                raise FailedPreconditionError(f"{version!r} is the beginning of {len(matches)} versions.")
            found = next(iter(matches.values()), None)
        if found is None:
            raise NotFoundError(
                SKILL.name, f"{current.metadata.slug}:{version}", "See the history for its versions."
            )
        return found

    async def _resolve(self, current: Skill, version: str) -> Skill | None:
        field = {rules.Asked.TAG: "tag", rules.Asked.HASH: "hash"}.get(rules.asked_of(version))
        rows: Sequence[StoredResource] = ()
        if field is not None:
            where = {"skill_id": current.metadata.id, field: version}
            rows = await self._store.list(VERSION_KIND, fields=where, limit=1)
        archived = [self._parse(row) for row in rows]
        found = rules.resolve(version, _version(current), [_version(one) for one in archived])
        return next((one for one in [current, *archived] if _version(one) == found), None)

    async def _find_version(self, blank: Skill, hash: str) -> Skill | None:
        stored = await self._store.find(SKILL.name, blank.metadata.org, blank.metadata.slug)
        return None if stored is None else await self._resolve(self._parse(stored), hash)

    async def _versions(self, current: Skill, beginning: str = "") -> list[Skill]:
        """Every archived state of the skill whose hash begins so."""
        found: list[Skill] = []
        before = None
        where = {"skill_id": current.metadata.id}
        while rows := await self._store.list(VERSION_KIND, fields=where, limit=MOST, before=before):
            found += [one for one in map(self._parse, rows) if one.status.version_hash.startswith(beginning)]
            before = rows[-1].key.id
        return found

    async def named(self, org: str, skill: str) -> Skill:
        """The current version by slug or id; without an organization, of the oldest skill with the slug.

        Raises:
            NotFoundError: there is none.
        """
        if is_id(SKILL.id_prefix, canonical_id(skill)):
            try:
                return await self.get(skill)
            except NotFoundError:
                pass  # a slug may look like an id
        stored = await self._store.find(SKILL.name, org, skill)
        if stored is None and not org:
            stored = await self._store.find(SKILL.name, None, skill)
        if stored is None:
            raise NotFoundError(SKILL.name, skill)
        return self._parse(stored)

    # -- artifacts ----------------------------------------------------------------------------------

    async def artifact(self, key: str) -> AsyncGenerator[bytes, None]:
        """Stream the bytes of a version.

        Raises:
            InvalidRequestError: not the key of a skill.
            NotFoundError: there are none.
            ArtifactError: they are not what was pushed. It comes after the last piece.
        """
        wanted = rules.hash_in_key(key)
        seen = hashlib.sha256()
        async for chunk in self._artifacts.get(key, chunk_size=PIECE):
            seen.update(chunk)
            yield chunk
        if seen.hexdigest() != wanted:
            raise ArtifactError(f"The artifact {key!r} was altered in its store. Push the skill again.")

    async def whole_artifact(self, key: str, most: int) -> bytes:
        """The bytes of a version at once.

        Raises:
            ArtifactTooLargeError: they are more than `most`.
        """
        found = bytearray()
        async for chunk in self.artifact(key):
            found += chunk
            if len(found) > most:
                raise ArtifactTooLargeError(key, most)
        return bytes(found)

    # -- delete -------------------------------------------------------------------------------------

    async def delete(self, resource_id: str) -> Skill:
        """Remove a skill nobody refers to; see `remove`."""
        skill, _ = await self.remove("", (await self.get(resource_id)).metadata.id)
        return skill

    async def remove(self, org: str, skill: str, *, force: bool = False) -> tuple[Skill, list[str]]:
        """Remove a skill, all it was, and its bytes.

        Returns:
            What it was, and the slugs of the agents that refer to it.

        Raises:
            FailedPreconditionError: agents refer to it and `force` is not set.
            NotFoundError: there is none.
        """
        current = await self.named(org, skill)
        metadata = current.metadata
        agents = await self._referring_agents(current)
        if agents and not force:
            shown = ", ".join(agents[:5]) + (", …" if len(agents) > 5 else "")
            raise FailedPreconditionError(
                f"Skill {metadata.slug!r} is used by {shown}. Change these agents first, or force it."
            )
        async with self._locks.hold(f"{metadata.org}/{metadata.slug}"):
            removed = self._parse(await self._store.delete(ResourceKey(SKILL.name, metadata.id)))
            await self._forget([removed, *await self._versions(removed)])
        log.info("skill deleted", skill_id=metadata.id, forced=bool(agents))
        return removed, agents

    async def _forget(self, versions: Sequence[Skill]) -> None:
        for version in versions[1:]:
            try:
                await self._store.delete(ResourceKey(VERSION_KIND, version.status.version_id))
            except NotFoundError:
                continue  # another replica deletes the same skill
        for key in {version.status.artifact_storage_key for version in versions}:
            await self._artifacts.delete(key)

    async def _referring_agents(self, skill: Skill) -> list[str]:
        found: list[str] = []
        before = None
        while rows := await self._store.list(AGENT.name, limit=MOST, before=before):
            agents = [Agent.FromString(row.body) for row in rows]
            found += [agent.metadata.slug for agent in agents if _refers(agent, skill)]
            before = rows[-1].key.id
        return sorted(found)


class ArtifactTooLargeError(LimitReachedError):
    """The artifact does not fit into one message."""

    def __init__(self, key: str, most: int) -> None:
        Exception.__init__(
            self,
            f"The artifact {key!r} has over {most} bytes, too many for one message. "
            "Read it with agent_runner.v1.SkillService.GetArtifact.",
        )


def _refers(agent: Agent, skill: Skill) -> bool:
    """Whether an agent, or a sub-agent of it, has a reference that means the skill."""
    references = [*agent.spec.skill_refs, *(ref for sub in agent.spec.sub_agents for ref in sub.skill_refs)]
    return any(
        ref.slug == skill.metadata.slug
        and (
            (ref.org or agent.metadata.org) in ("", skill.metadata.org)
            or ref.scope == ApiResourceOwnerScope.platform
        )
        for ref in references
    )


def _is_current(skill: Skill, hash: str, tag: str) -> bool:
    return skill.status.version_hash == hash and tag in ("", skill.spec.tag)


def _version(skill: Skill) -> rules.Version:
    return rules.Version(skill.status.version_id, skill.status.version_hash, skill.spec.tag)


def _content_of(skill: Skill) -> SkillContent:
    return SkillContent(
        hash=skill.status.version_hash,
        size=skill.status.size_bytes,
        skill_md=skill.spec.skill_md,
        file_count=skill.status.file_count,
    )


def _fields(skill: Skill) -> Mapping[str, str]:
    return {"skill_id": skill.metadata.id, "hash": skill.status.version_hash, "tag": skill.spec.tag}
