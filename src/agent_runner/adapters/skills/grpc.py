"""Skills over gRPC, from our control plane or any server of the Stigmer API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Final

import grpc
import grpc.aio

from agent_runner.client.channels import Channel
from agent_runner.client.errors import DeadlineError, from_rpc
from agent_runner.v1.skill_service_pb2 import GetArtifactRequest, GetArtifactResponse
from ai.stigmer.agentic.skill.v1 import io_pb2
from ai.stigmer.agentic.skill.v1.api_pb2 import Skill
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference

_BY_REFERENCE: Final = "/ai.stigmer.agentic.skill.v1.SkillQueryController/getByReference"
_WHOLE: Final = "/ai.stigmer.agentic.skill.v1.SkillQueryController/getArtifact"
_STREAM: Final = "/agent_runner.v1.SkillService/GetArtifact"
_SILENCE: Final = timedelta(seconds=30)


class GrpcSkillReader:
    """Reads by the query service; artifacts by our stream, where the server knows it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def skill(self, reference: ApiResourceReference) -> Skill:
        return await self._channel.unary(_BY_REFERENCE, reference, Skill)

    async def artifact(self, key: str) -> AsyncIterator[bytes]:
        request = GetArtifactRequest(artifact_storage_key=key)
        try:
            async for answer in self._channel.stream(_STREAM, request, GetArtifactResponse, silence=_SILENCE):
                yield answer.chunk
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise from_rpc(error, self._channel.address) from error
        except TimeoutError as error:
            raise DeadlineError(self._channel.address) from error
        else:
            return
        whole = io_pb2.GetArtifactRequest(artifact_storage_key=key)
        yield (await self._channel.unary(_WHOLE, whole, io_pb2.GetArtifactResponse)).artifact
