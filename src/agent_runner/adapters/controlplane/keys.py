"""Whether the control plane takes this process for a runner."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from agent_runner.client.channels import Channel
from agent_runner.errors import AgentRunnerError, PermissionDeniedError, UnauthenticatedError
from agent_runner.v1.runner_service_pb2 import StartAttemptRequest, StartAttemptResponse

_START: Final = "/agent_runner.v1.RunnerService/StartAttempt"


async def check_key(channel: Channel) -> None:
    """Ask before any execution is taken: each one a refused runner took would have to be taken by another.

    Raises:
        UnauthenticatedError, PermissionDeniedError: what the channel shows is not the key. A control
            plane that is away, or does not know `agent_runner.v1`, has not refused anything.
    """
    try:
        # Of no execution, so all a right key brings is an answer that says so.
        await channel.unary(_START, StartAttemptRequest(), StartAttemptResponse, timeout=timedelta(seconds=5))
    except (UnauthenticatedError, PermissionDeniedError):
        raise
    except AgentRunnerError:
        return
