"""Agent instances."""

from __future__ import annotations

from agent_runner.domain.paging import page_by_number
from agent_runner.services.agent_instances import AgentInstanceService
from agent_runner.services.validation import validate
from ai.stigmer.agentic.agentinstance.v1.io_pb2 import AgentInstanceList, GetAgentInstancesByAgentRequest


class AgentInstanceController:
    """What instances have beyond other resources."""

    def __init__(self, instances: AgentInstanceService) -> None:
        self._instances = instances

    async def get_by_agent(self, request: GetAgentInstancesByAgentRequest) -> AgentInstanceList:
        validate(request)
        wanted = page_by_number(request.page_info.num, request.page_info.size)
        page = await self._instances.list_by_agent(request.agent_id, wanted)
        count = await self._instances.count_by_agent(request.agent_id)
        return AgentInstanceList(total_count=count, items=page.items)
