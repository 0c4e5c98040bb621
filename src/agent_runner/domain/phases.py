"""Phases of an execution by name, and which of them are ends."""

from __future__ import annotations

from typing import Final

from agent_runner.domain.status import TERMINAL_PHASES, is_terminal
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_IN_PROGRESS,
    EXECUTION_PENDING,
    EXECUTION_PHASE_UNSPECIFIED,
    ExecutionPhase,
)

__all__ = ["TERMINAL_PHASES", "UNFINISHED_PHASES", "is_terminal", "phase_name", "phase_word"]

UNFINISHED_PHASES: Final = (EXECUTION_PENDING, EXECUTION_IN_PROGRESS)


def phase_name(phase: ExecutionPhase.ValueType) -> str:
    """The enum value's name, as in the `phase` field of the store. No phase yet is pending."""
    return ExecutionPhase.Name(EXECUTION_PENDING if phase == EXECUTION_PHASE_UNSPECIFIED else phase)


def phase_word(phase: ExecutionPhase.ValueType) -> str:
    """For people: `in progress`."""
    return phase_name(phase).removeprefix("EXECUTION_").replace("_", " ").lower()
