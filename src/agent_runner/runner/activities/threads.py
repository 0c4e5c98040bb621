"""Which conversation an execution belongs to."""

from __future__ import annotations

import uuid

from temporalio import activity

from agent_runner.runner.payloads import ENSURE_THREAD


@activity.defn(name=ENSURE_THREAD)
async def ensure_thread(session_id: str, agent_id: str) -> str:
    """The session's thread; without a session, one for this execution alone. (Rule of the Stigmer runner.)"""
    if session_id:
        return f"thread-{session_id}"
    return f"ephemeral-{agent_id}-{uuid.uuid4().hex[:8]}"
