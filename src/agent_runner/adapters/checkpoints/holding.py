"""Whose turn a conversation is: what other attempts write to it is refused.

The log refuses an older attempt too, but a worker learns of that from what it sends, and checkpoints do
not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import apsw

from agent_runner.errors import FencedError, UnavailableError

KEY: Final = "__agent_runner_holder"
"""In `configurable`: who writes. The engine leaves names that begin so out of the metadata it stores."""

Holder = tuple[str, int]
"""Execution and attempt."""


def holder_of(configurable: Mapping[str, Any]) -> Holder | None:
    """Who writes; None for who holds nothing, whose writes are taken."""
    return configurable.get(KEY)


def hold(thread_id: str, holder: Holder, connection: apsw.Connection) -> None:
    """Give a thread to a holder.

    Raises:
        FencedError: a later attempt of the same execution has it.
    """
    execution_id, attempt = holder
    found = _found(thread_id, connection)
    if found is not None and found[0] == execution_id and found[1] > attempt:
        raise FencedError(execution_id, attempt, found[1])
    connection.execute("INSERT OR REPLACE INTO holders VALUES (?, ?, ?)", (thread_id, *holder))


def check(thread_id: str, holder: Holder | None, connection: apsw.Connection) -> None:
    """Raises UnavailableError when somebody else has the thread by now, or it was forgotten."""
    if holder is not None and _found(thread_id, connection) != holder:
        raise UnavailableError("Another attempt goes on with the conversation; this one is not remembered.")


def let_go(thread_id: str, connection: apsw.Connection) -> None:
    """Whoever held the thread does not any more."""
    connection.execute("DELETE FROM holders WHERE thread_id = ?", (thread_id,))


def _found(thread_id: str, connection: apsw.Connection) -> Holder | None:
    found: Holder | None = connection.execute(
        "SELECT execution_id, attempt FROM holders WHERE thread_id = ?", (thread_id,)
    ).get
    return found
