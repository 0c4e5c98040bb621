"""Sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent_runner.domain.kinds import SESSION
from agent_runner.domain.paging import page_by_token, total_pages
from agent_runner.services.sessions import SessionService, by_agent
from agent_runner.services.validation import validate
from ai.stigmer.agentic.session.v1.io_pb2 import (
    ListSessionsByAgentRequest,
    ListSessionsRequest,
    SessionList,
)


class SessionController:
    """What sessions have beyond other resources."""

    def __init__(self, sessions: SessionService) -> None:
        self._sessions = sessions

    async def list(self, request: ListSessionsRequest) -> SessionList:
        return await self._page(request, {}, request.tags)

    async def list_by_agent(self, request: ListSessionsByAgentRequest) -> SessionList:
        validate(request)
        return await self._page(request, by_agent(request.agent_id))

    async def _page(
        self,
        request: ListSessionsRequest | ListSessionsByAgentRequest,
        fields: Mapping[str, str],
        tags: Sequence[str] = (),
    ) -> SessionList:
        wanted = page_by_token(request.page_size, request.page_token, SESSION.id_prefix)
        page = await self._sessions.list(wanted, fields=fields, tags=tags)
        pages = total_pages(await self._sessions.count(fields), wanted.size)
        return SessionList(total_pages=pages, entries=page.items, next_page_token=page.next_token)
