"""Skills of any size: pushed and pulled in pieces, their versions, rollback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
import grpc.aio

from agent_runner.client.channels import Channel
from agent_runner.client.errors import DeadlineError, UnsupportedError, from_rpc
from agent_runner.client.kinds import ORGANIZATION, SKILL, canonical_id

if TYPE_CHECKING:
    from agent_runner.v1.skill_service_pb2 import PushSkillResponse, SkillVersion
    from ai.stigmer.agentic.skill.v1.api_pb2 import Skill

PIECE: Final = 256 << 10
"""Bytes of one message of a push."""
_SERVICE: Final = "/agent_runner.v1.SkillService"
_QUERIES: Final = "/ai.stigmer.agentic.skill.v1.SkillQueryController"
_PUSH_DEADLINE: Final = timedelta(minutes=10)
_SILENCE: Final = timedelta(seconds=30)


class Skills:
    """Skills of one server. `org` is where slugs are looked up and new skills are put."""

    def __init__(self, channel: Channel, org: str) -> None:
        self._channel = channel
        self.org = org

    async def push(
        self,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        org: str | None = None,
        tag: str = "",
        hash: str = "",
        dry_run: bool = False,
    ) -> PushSkillResponse:
        """Store a skill's archive, a zip with SKILL.md at its top.

        Args:
            chunks: the zip, in pieces of at most 1 MiB.
            hash: SHA-256 of it, when it is known: then a version that is there already needs no bytes.
            dry_run: check, and say what would come of it.

        Raises:
            InvalidRequestError: the archive or a field is wrong.
        """
        from agent_runner.v1.skill_service_pb2 import PushSkillHeader, PushSkillRequest, PushSkillResponse

        header = PushSkillHeader(
            name=name,
            org=self.org if org is None else org,
            scope=cast("Any", ORGANIZATION),
            tag=tag,
            hash=hash,
            dry_run=dry_run,
        )

        async def requests() -> AsyncIterator[PushSkillRequest]:
            yield PushSkillRequest(header=header)
            async for chunk in chunks:
                yield PushSkillRequest(chunk=chunk)

        method = f"{_SERVICE}/PushSkill"
        return await self._channel.upload(method, requests(), PushSkillResponse, timeout=_PUSH_DEADLINE)

    async def get(self, skill: str, version: str = "", *, org: str | None = None) -> Skill:
        """The version that is meant: none or `latest`, a tag, or a hash; the skill by slug or id.

        Raises:
            NotFoundError: there is none.
        """
        from ai.stigmer.agentic.skill.v1.api_pb2 import Skill
        from ai.stigmer.agentic.skill.v1.io_pb2 import SkillId
        from ai.stigmer.commons.apiresource.apiresourcekind.api_resource_kind_pb2 import ApiResourceKind
        from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference

        org = self.org if org is None else org
        if SKILL.is_id(skill):
            found = await self._channel.unary(f"{_QUERIES}/get", SkillId(value=canonical_id(skill)), Skill)
            if version in ("", "latest"):
                return found
            skill, org = found.metadata.slug, found.metadata.org
        reference = ApiResourceReference(org=org, kind=ApiResourceKind.skill, slug=skill, version=version)
        return await self._channel.unary(f"{_QUERIES}/getByReference", reference, Skill)

    async def versions(self, skill: str, *, org: str | None = None, limit: int = 0) -> list[SkillVersion]:
        """What a skill was, newest first, beginning with what it is; 0 for all of it."""
        from agent_runner.v1.skill_service_pb2 import ListSkillVersionsRequest, ListSkillVersionsResponse

        request = ListSkillVersionsRequest(
            org=self.org if org is None else org, skill=skill, page_size=min(limit or 200, 200)
        )
        found: list[SkillVersion] = []
        while True:
            method = f"{_SERVICE}/ListSkillVersions"
            page = await self._channel.unary(method, request, ListSkillVersionsResponse)
            found += page.versions
            if not page.next_page_token or 0 < limit <= len(found):
                return found[:limit] if limit else found
            request.page_token = page.next_page_token

    async def rollback(self, skill: str, version: str, *, org: str | None = None, tag: str = "") -> Skill:
        """Make an earlier version current again: a tag, a hash, or its first 8 or more digits."""
        from agent_runner.v1.skill_service_pb2 import RollbackSkillRequest, RollbackSkillResponse

        request = RollbackSkillRequest(
            org=self.org if org is None else org, skill=skill, version=version, tag=tag
        )
        method = f"{_SERVICE}/RollbackSkill"
        return (await self._channel.unary(method, request, RollbackSkillResponse)).skill

    async def delete(self, skill: str, *, org: str | None = None, force: bool = False) -> list[str]:
        """Remove a skill with all its versions; returns slugs of agents that still refer to it.

        Raises:
            FailedPreconditionError: agents refer to it and `force` is not set.
        """
        from agent_runner.v1.skill_service_pb2 import DeleteSkillRequest, DeleteSkillResponse

        request = DeleteSkillRequest(org=self.org if org is None else org, skill=skill, force=force)
        answer = await self._channel.unary(f"{_SERVICE}/DeleteSkill", request, DeleteSkillResponse)
        return list(answer.referring_agents)

    async def artifact(self, key: str) -> AsyncIterator[bytes]:
        """Stream the zip of a version; a server of the Stigmer API alone gives it in one piece.

        Raises:
            NotFoundError: there is none.
            RemoteError: code `DATA_LOSS`: it is not what was pushed; comes after the last piece.
        """
        from agent_runner.v1.skill_service_pb2 import GetArtifactRequest, GetArtifactResponse

        request, method = GetArtifactRequest(artifact_storage_key=key), f"{_SERVICE}/GetArtifact"
        try:
            async for answer in self._channel.stream(method, request, GetArtifactResponse, silence=_SILENCE):
                yield answer.chunk
            return
        except grpc.aio.AioRpcError as error:
            failure = from_rpc(error, self._channel.address)
            if not isinstance(failure, UnsupportedError):
                raise failure from error
        except TimeoutError as error:
            raise DeadlineError(self._channel.address) from error
        yield await self._whole(key)

    async def _whole(self, key: str) -> bytes:
        from ai.stigmer.agentic.skill.v1.io_pb2 import GetArtifactRequest, GetArtifactResponse

        request = GetArtifactRequest(artifact_storage_key=key)
        return (await self._channel.unary(f"{_QUERIES}/getArtifact", request, GetArtifactResponse)).artifact
