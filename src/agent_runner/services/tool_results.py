"""Results of tools that are too long for an event: kept as artifacts of their execution, and read again."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Final

import structlog

from agent_runner.errors import FailedPreconditionError, InvalidRequestError, NotFoundError, UnavailableError
from agent_runner.ports.artifacts import ArtifactStore
from agent_runner.ports.stores import LogHead
from agent_runner.services._attempt_tokens import ensure_holds
from agent_runner.services._live import Live
from agent_runner.services._logbook import Logbook, checked
from agent_runner.services.execution_records import ARTIFACTS, ExecutionRecord
from agent_runner.services.watching import WatchService
from agent_runner.v1.runner_service_pb2 import UploadToolResultHeader
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import ToolCall
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import TOOL_CALL_COMPLETED, TOOL_CALL_FAILED

log = structlog.get_logger(__name__)

_PIECE: Final = 256 << 10


class ToolResultService:
    """Keeps results under `executions/{execution id}/tool-results/{SHA-256}`."""

    def __init__(self, logbook: Logbook, watches: WatchService, artifacts: ArtifactStore) -> None:
        self._logbook = logbook
        self._watches = watches
        self._artifacts = artifacts

    async def keep(self, header: UploadToolResultHeader, chunks: AsyncIterator[bytes]) -> str:
        """Keep a result for the attempt that holds the execution; returns its key. Safe to repeat.

        Raises:
            PermissionDeniedError: the token is not the one that attempt was given.
            FencedError: the attempt does not hold the execution.
            FailedPreconditionError: it has ended.
            NotFoundError: it is not there, or was deleted meanwhile.
            InvalidRequestError: the chunks are not what the header says; nothing was kept.
            UnavailableError: the artifact store is away.
        """
        execution_id = checked(header.execution_id)
        async with self._logbook.open(execution_id, fresh=True) as live:
            await self._logbook.writing(live, partial(self._admit, live, header))
        # The name says what is in it: a second upload of the same text changes nothing, and none can
        # change what an event points to.
        key = f"{_folder(execution_id)}/tool-results/{header.sha256.hex()}"
        await self._artifacts.put(key, _as_announced(header, chunks))
        try:
            await self._watches.phase(execution_id)
        except NotFoundError:
            await self._artifacts.delete(key)
            raise
        log.info("tool result kept", execution_id=execution_id, size=header.size_bytes)
        return key

    async def read(self, execution_id: str, tool_call_id: str) -> AsyncGenerator[bytes, None]:
        """The whole result of a call, or its error, in UTF-8, wherever it is kept.

        Raises:
            NotFoundError: no such execution or call, or its result is not kept any more.
            FailedPreconditionError: the call has not ended.
            UnavailableError: the artifact store is away.
        """
        record, status, _time = await self._watches.status(checked(execution_id))
        call = next((call for call in status.tool_calls if call.id == tool_call_id), None)
        if call is None:
            raise NotFoundError(
                "Tool call", tool_call_id[:100], f"Execution {record.id} has none of this id."
            )
        if call.status not in (TOOL_CALL_COMPLETED, TOOL_CALL_FAILED):
            raise FailedPreconditionError(f"Tool call {tool_call_id[:100]!r} has not ended.")
        if not call.artifact_key:
            text = (call.result or call.error).encode()
            for start in range(0, len(text), _PIECE):
                yield text[start : start + _PIECE]
            return
        async for chunk in self._artifact(record.id, call):
            yield chunk

    async def remove(self, record: ExecutionRecord) -> None:
        """Remove what is kept for an execution, also what no event points to.

        Raises:
            UnavailableError: the artifact store is away.
        """
        if record.has_artifacts:
            await self._artifacts.delete_under(_folder(record.id))

    async def remove_late(self, record: ExecutionRecord) -> None:
        """Remove what came while the execution was being removed, as far as it can be done now."""
        try:
            await self.remove(record)
        except UnavailableError as error:
            log.warning("tool results may be left", execution_id=record.id, error=str(error))

    async def _admit(self, live: Live, header: UploadToolResultHeader, head: LogHead) -> None:
        ensure_holds(live, head, header.attempt, header.token, "tool results")
        assert live.record is not None
        if not live.record.has_artifacts:
            # Before the first one: it goes with the execution, also when no event tells of it.
            live.record = await self._logbook.records.set_fields(live.record, {ARTIFACTS: "some"})

    async def _artifact(self, execution_id: str, call: ToolCall) -> AsyncIterator[bytes]:
        # The key comes from a runner, or from whoever may send a status.
        if call.artifact_key.startswith(f"{_folder(execution_id)}/"):
            try:
                async for chunk in self._artifacts.get(call.artifact_key, chunk_size=_PIECE):
                    yield chunk
                return
            except (NotFoundError, InvalidRequestError):
                log.warning("a tool's result is gone", execution_id=execution_id)
        raise NotFoundError("Result of tool call", call.id[:100], "It is not kept any more.")


def _folder(execution_id: str) -> str:
    return f"executions/{execution_id}"


async def _as_announced(header: UploadToolResultHeader, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks, unless they are not what the header says; then the store keeps none of them."""
    size, digest = 0, hashlib.sha256()
    async for chunk in chunks:
        size += len(chunk)
        if size > header.size_bytes:
            raise InvalidRequestError.of("header.size_bytes", f"says {header.size_bytes}, and more came")
        digest.update(chunk)
        yield chunk
    if size != header.size_bytes:
        raise InvalidRequestError.of("header.size_bytes", f"says {header.size_bytes}, but {size} came")
    if digest.digest() != header.sha256:
        raise InvalidRequestError.of("header.sha256", "is that of another text")
