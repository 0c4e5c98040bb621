"""Which conversation an execution belongs to."""

from __future__ import annotations

import uuid

from temporalio import activity

from agent_runner.ports.agents import Checkpoints
from agent_runner.runner.failures import retry_contract
from agent_runner.runner.heartbeats import heartbeats
from agent_runner.runner.payloads import ENSURE_THREAD, FORGET_THREAD


@activity.defn(name=ENSURE_THREAD)
async def ensure_thread(session_id: str, agent_id: str) -> str:
    """The session's thread; without a session, one for this execution alone. (Rule of the Stigmer runner.)"""
    if session_id:
        return f"thread-{session_id}"
    return f"ephemeral-{agent_id}-{uuid.uuid4().hex[:8]}"


class ThreadActivities:
    """Holds what this worker's agents remember by."""

    def __init__(self, checkpoints: Checkpoints | None) -> None:
        self._checkpoints = checkpoints

    @activity.defn(name=FORGET_THREAD)
    async def forget(self, thread_id: str) -> None:
        """Remove the checkpoints of a conversation; nothing happens when there are none."""
        if self._checkpoints is not None:
            async with heartbeats():
                with retry_contract():
                    await self._checkpoints.delete(thread_id)
