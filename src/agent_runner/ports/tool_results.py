"""Where results of tools are kept that are too long for an event."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ResultToKeep:
    """Whose result it is, and what it has; the fields of `UploadToolResultHeader`.

    Attributes:
        attempt, token: which `StartAttempt` gave to who runs the execution now.
        size, sha256: of all pieces together.
    """

    execution_id: str
    attempt: int
    token: str = field(repr=False)
    tool_call_id: str
    size: int
    sha256: bytes


class ToolResults(Protocol):
    """Results by execution and tool call. Secrets are masked in them before they come here."""

    async def put(self, result: ResultToKeep, pieces: Iterable[bytes]) -> str:
        """Keep it whole or not at all; safe to repeat.

        Returns:
            The key for the event; empty: the server keeps no results.

        Args:
            pieces: of at most 1 MiB each; walked through once, as fast as they are taken.

        Raises:
            FencedError: another attempt holds the execution.
            UnavailableError: try again.
            AgentRunnerError: it will not be kept, such as when the execution has ended.
        """
        ...

    def get(self, execution_id: str, tool_call_id: str) -> AsyncIterator[bytes]:
        """Stream a result, kept or not too long; it is whole when the iterator ends without an error.

        Raises:
            NotFoundError: no such execution or call, or its result is not kept any more.
            FailedPreconditionError: the call has not ended.
            UnavailableError: try again.
        """
        ...
