"""What the product adds to the time between two pieces of a model's answer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from agent_runner.adapters.models.resolver import DefaultModelResolver
from bench.altered import GAPS
from bench.floors import BareLoop
from bench.plans import Plan
from bench.product import client, make_agent, run_turn
from bench.rows import Floor, Row, Spread, in_ms, most, quantile, spread
from bench.scripts import turn_script
from bench.stacks import ALTERED, one_process
from bench.timed_models import TimedModels

DELAY_MS = 5


async def token_gap(folder: Path, plan: Plan) -> list[Row]:
    """The token loop of a runner beside the bare loop's, both with a model that notes when it is asked on.

    A gap is the model's 5 ms, what the loop does with a piece before it asks for the next, and whatever
    else kept the event loop from going on. Were anything awaited in between, it would show here.
    """
    script = turn_script(folder, rounds=0, tokens=plan.gap_tokens, delay_ms=DELAY_MS)
    seen, alone = folder / "gaps-ours.jsonl", folder / "gaps-bare.jsonl"
    models = TimedModels(DefaultModelResolver({}), alone)
    loop = BareLoop(script, models)
    stack = one_process(folder / "stack", program=ALTERED, **{GAPS: str(seen)})
    async with stack as processes, client(processes) as runner:
        agent_id = await make_agent(runner, script)
        for _ in range(plan.gap_pairs + 1):
            await loop.turn()
            await run_turn(runner, agent_id)
    bare, ours = await asyncio.gather(asyncio.to_thread(_gaps, alone), asyncio.to_thread(_gaps, seen))
    return [_added(bare, ours, 0.5), _added(bare, ours, 0.99)]


def _gaps(path: Path) -> list[list[float]]:
    """Milliseconds between pieces, by turn; the first turn, which loads what is loaded once, left out."""
    return [in_ms(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()][1:]


def _added(bare: list[list[float]], ours: list[list[float]], share: float) -> Row:
    """The difference of two distributions at one place; its spread over the pairs."""
    pairs = [quantile(b, share) for b in bare], [quantile(o, share) for o in ours]
    together = [gap for turn in bare for gap in turn], [gap for turn in ours for gap in turn]
    floor, value = quantile(together[0], share), quantile(together[1], share)
    added: Spread = spread([after - before for before, after in zip(*pairs, strict=True)])
    return Row(
        f"gap between tokens, added to the bare loop's, p{share * 100:.0f}",
        value - floor,
        "ms",
        len(together[1]),
        added,
        (Floor("bare loop", floor, "ms"),),
        most(1) if share > 0.5 else None,
        note=f"ours {value:.2f} ms, at {DELAY_MS} ms a token; spread over {len(ours)} pairs",
    )
