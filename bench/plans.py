"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. The numbers are of a whole run, which takes some minutes.

    Attributes:
        latency_runs: turns, one after the other, where latency is measured.
        starts: of the stack.
        pairs: of a bare turn and one of the product, each of three seconds.
        executions: of the load, for each speed of the model and each round.
        concurrency: how many of them at once; the budgets are for 20.
        token_ms: speeds of the load's model, in ms a token.
        rounds: of the load, bare loop and product by turns.
        turns: of one thread, where checkpoints are weighed.
        gap_tokens, gap_pairs: length of the answers whose pieces are timed, and how many pairs of them.
        updates: of each of fifty executions.
        appends: to the execution that is watched by so many `watchers`; so many are `watched` in turn.
        other_temporal: whether cancels are measured with a Temporal as others run it, too.
        tool_rounds: of the executions whose Temporal history is weighed.
    """

    latency_runs: int = 30
    starts: int = 2
    pairs: int = 3
    executions: int = 40
    concurrency: int = 20
    token_ms: tuple[float, ...] = (0, 5, 20)
    rounds: int = 2
    turns: int = 100
    tool_rounds: tuple[int, ...] = (1, 100, 1000)
    cancels: int = 12
    other_temporal: bool = True
    crashes: int = 2
    many_tokens: int = 10_000
    commands: int = 30
    idle_seconds: float = 4.0
    gap_tokens: int = 400
    gap_pairs: int = 3
    updates: int = 200
    appends: int = 200
    watchers: int = 100
    watched: int = 3


QUICK = Plan(
    latency_runs=10,
    starts=1,
    pairs=1,
    executions=20,
    token_ms=(0, 20),
    rounds=1,
    turns=20,
    tool_rounds=(1, 50),
    cancels=4,
    other_temporal=False,
    crashes=1,
    many_tokens=2_000,
    commands=8,
    idle_seconds=2.0,
    gap_tokens=300,
    gap_pairs=1,
    updates=60,
    appends=100,
    watched=1,
)
