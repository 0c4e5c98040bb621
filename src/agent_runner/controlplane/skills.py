"""Skills: the Stigmer API's services, and `agent_runner.v1.SkillService`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

import grpc

from agent_runner.controlplane._calls import Context, guarded
from agent_runner.controlplane._rpc import Deliver
from agent_runner.controlplane._uploads import chunks_of, header_of, parts_of
from agent_runner.domain.paging import page_by_token
from agent_runner.services.skills import VERSION_PREFIX, Push, SkillService
from agent_runner.services.validation import validate
from agent_runner.v1.skill_service_pb2 import (
    DESCRIPTOR,
    DeleteSkillRequest,
    DeleteSkillResponse,
    GetArtifactRequest,
    GetArtifactResponse,
    ListSkillVersionsRequest,
    ListSkillVersionsResponse,
    PushSkillHeader,
    PushSkillRequest,
    PushSkillResponse,
    RollbackSkillRequest,
    RollbackSkillResponse,
    SkillVersion,
)
from ai.stigmer.agentic.skill.v1 import io_pb2
from ai.stigmer.agentic.skill.v1.api_pb2 import Skill

_SERVICE: Final = DESCRIPTOR.services_by_name["SkillService"].full_name
_MOST_UNARY_BYTES: Final = 60 << 20
"""Of an artifact in one message; clients of ours take 64 MiB."""


class SkillController:
    """What skills have beyond other resources."""

    def __init__(self, skills: SkillService) -> None:
        self._skills = skills

    async def push(self, request: io_pb2.PushSkillRequest) -> Skill:
        validate(request)
        push = Push(name=request.name, org=request.org, scope=request.scope, tag=request.tag)
        return (await self._skills.push(push, _once(request.artifact))).skill

    async def push_in_pieces(self, requests: AsyncIterator[bytes]) -> PushSkillResponse:
        parts = parts_of(requests, PushSkillRequest)
        header: PushSkillHeader = await header_of(parts)
        push = Push(
            name=header.name,
            org=header.org,
            scope=header.scope,
            tag=header.tag,
            hash=header.hash,
            dry_run=header.dry_run,
        )
        done = await self._skills.push(push, chunks_of(parts))
        return PushSkillResponse(skill=done.skill, new_version=done.new_version, warnings=done.warnings)

    async def get_artifact(self, request: io_pb2.GetArtifactRequest) -> io_pb2.GetArtifactResponse:
        validate(request)
        whole = await self._skills.whole_artifact(request.artifact_storage_key, _MOST_UNARY_BYTES)
        return io_pb2.GetArtifactResponse(artifact=whole)

    async def stream_artifact(self, request: GetArtifactRequest, deliver: Deliver) -> None:
        validate(request)
        async with aclosing(self._skills.artifact(request.artifact_storage_key)) as chunks:
            async for chunk in chunks:
                await deliver(GetArtifactResponse(chunk=chunk).SerializeToString(), 0)

    async def list_versions(self, request: ListSkillVersionsRequest) -> ListSkillVersionsResponse:
        validate(request)
        wanted = page_by_token(request.page_size, request.page_token, VERSION_PREFIX)
        page = await self._skills.history(request.org, request.skill, wanted)
        current = await self._skills.named(request.org, request.skill)
        return ListSkillVersionsResponse(
            versions=[_version(skill, current) for skill in page.items], next_page_token=page.next_token
        )

    async def rollback(self, request: RollbackSkillRequest) -> RollbackSkillResponse:
        validate(request)
        skill = await self._skills.rollback(request.org, request.skill, request.version, tag=request.tag)
        return RollbackSkillResponse(skill=skill)

    async def delete(self, request: DeleteSkillRequest) -> DeleteSkillResponse:
        validate(request)
        skill, agents = await self._skills.remove(request.org, request.skill, force=request.force)
        return DeleteSkillResponse(skill=skill, referring_agents=agents)

    def push_handler(self) -> grpc.GenericRpcHandler:
        """The handler of `PushSkill`, the one method that takes a stream."""

        async def behavior(requests: AsyncIterator[bytes], _context: Context) -> bytes:
            return (await self.push_in_pieces(requests)).SerializeToString()

        name = f"/{_SERVICE}/PushSkill"
        handler: grpc.RpcMethodHandler[bytes, bytes]
        handler = grpc.stream_unary_rpc_method_handler(guarded(name, behavior))  # type: ignore[arg-type]
        return grpc.method_handlers_generic_handler(_SERVICE, {"PushSkill": handler})


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _version(skill: Skill, current: Skill) -> SkillVersion:
    status = skill.status
    return SkillVersion(
        id=status.version_id,
        hash=status.version_hash,
        tag=skill.spec.tag,
        time=status.audit.status_audit.updated_at.ToJsonString(),
        size_bytes=status.size_bytes,
        current=status.version_id == current.status.version_id,
        skill=skill,
    )
