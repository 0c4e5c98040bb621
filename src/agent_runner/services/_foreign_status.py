"""What a runner of the Stigmer API says, as it is logged."""

from __future__ import annotations

from typing import Final

from agent_runner.domain.masking import Masker
from agent_runner.domain.phases import is_terminal
from agent_runner.v1.events_pb2 import StatusMerged
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus

_NOT_THE_RUNNERS: Final = ("audit", "callback_token", "run")


def as_logged(status: AgentExecutionStatus, masker: Masker) -> StatusMerged:
    """The status without what is not its runner's to say, and without secrets."""
    merged = StatusMerged(status=status)
    for field in _NOT_THE_RUNNERS:
        merged.status.ClearField(field)
    masker.message(merged.status)
    if not is_terminal(status.phase):
        _hold_back(merged.status, masker)
    return merged


def _hold_back(status: AgentExecutionStatus, masker: Masker) -> None:
    """Leave out, of what is being said, an end that may be the beginning of a secret: more of it follows."""
    for messages in (status.messages, *(sub_agent.messages for sub_agent in status.sub_agent_executions)):
        if messages:
            content = messages[-1].content
            messages[-1].content = content[: masker.safe_length(content)]
