"""Phases."""

from __future__ import annotations

from agent_runner.domain.phases import TERMINAL_PHASES, UNFINISHED_PHASES, phase_name, phase_word
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_IN_PROGRESS,
    EXECUTION_PHASE_UNSPECIFIED,
    ExecutionPhase,
)


def test_every_phase_is_an_end_or_unfinished() -> None:
    assert TERMINAL_PHASES | set(UNFINISHED_PHASES) == set(ExecutionPhase.values()) - {0}
    assert not TERMINAL_PHASES & set(UNFINISHED_PHASES)


def test_no_phase_yet_is_pending() -> None:
    assert phase_name(EXECUTION_PHASE_UNSPECIFIED) == "EXECUTION_PENDING"
    assert phase_word(EXECUTION_IN_PROGRESS) == "in progress"
