"""Skills over gRPC, from our control plane or any server of the Stigmer API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from agent_runner.client.channels import Channel
from agent_runner.client.skills import Skills
from ai.stigmer.agentic.skill.v1.api_pb2 import Skill
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference

_BY_REFERENCE: Final = "/ai.stigmer.agentic.skill.v1.SkillQueryController/getByReference"


class GrpcSkillReader:
    """A SkillReader by the query service; artifacts by our stream, where the server knows it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._skills = Skills(channel, org="")

    async def skill(self, reference: ApiResourceReference) -> Skill:
        return await self._channel.unary(_BY_REFERENCE, reference, Skill)

    def artifact(self, key: str) -> AsyncIterator[bytes]:
        return self._skills.artifact(key)
