"""What skills cost a turn."""

from __future__ import annotations

import io
import statistics
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from agent_runner.client import AgentRunner
from agent_runner.client.kinds import AGENT
from bench.plans import Plan
from bench.product import Processes, client, make_agent
from bench.rows import Floor, Row, in_ms, most, row_of
from bench.scripts import turn_script

SKILLS, FILES, FILE_BYTES = 10, 10, 20_000


async def skills(processes: Processes, folder: Path, plan: Plan) -> list[Row]:
    """The second and later executions of a session whose agent has ten skills, beside one that has none."""
    script = turn_script(folder, rounds=0, tokens=5, delay_ms=0)
    async with client(processes) as runner:
        sessions = {}
        for count in (0, SKILLS):
            agent_id = await make_agent(runner, script)
            await _give_skills(runner, agent_id, count)
            first = await runner.executions.start("go", agent_id=agent_id)
            await _ended(runner, first.metadata.id)
            sessions[count] = first.spec.session_id
        times: dict[int, list[float]] = {0: [], SKILLS: []}
        for _ in range(plan.latency_runs):
            for count, session_id in sessions.items():
                times[count].append(await _first_event(runner, session_id))
    added = [
        (with_skills - without) * 1e3 for without, with_skills in zip(times[0], times[SKILLS], strict=True)
    ]
    without = statistics.median(in_ms(times[0]))
    return [
        row_of(
            f"a later turn of a session with {SKILLS} skills, added",
            added,
            "ms",
            floors=(Floor("without skills", without, "ms"),),
            budget=most(20),
        )
    ]


async def _give_skills(runner: AgentRunner, agent_id: str, count: int) -> None:
    agent: Any = await runner.resources.get(AGENT, agent_id)
    for number in range(count):
        pushed = await runner.skills.push(f"bench-{number}", _archive(number))
        agent.spec.skill_refs.add(slug=pushed.skill.metadata.slug)
    await runner.resources.apply(agent)


async def _archive(number: int) -> AsyncIterator[bytes]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        text = f"---\nname: bench-{number}\ndescription: Number {number}.\n---\n" + "Do it.\n" * 100
        archive.writestr(zipfile.ZipInfo("SKILL.md"), text)
        for file in range(FILES):
            archive.writestr(zipfile.ZipInfo(f"data/{file}.txt"), f"{number}{file}\n" * (FILE_BYTES // 3))
    yield buffer.getvalue()


async def _first_event(runner: AgentRunner, session_id: str) -> float:
    """Seconds from the create call to the agent's first event."""
    began = time.perf_counter()
    execution = await runner.executions.start("go", session_id=session_id)
    return await _ended(runner, execution.metadata.id) - began


async def _ended(runner: AgentRunner, execution_id: str) -> float:
    """Watch to the end; returns the clock at the agent's first event."""
    first = 0.0
    async for event in runner.executions.watch(execution_id):
        if not first and event.WhichOneof("event") == "message_delta":
            first = time.perf_counter()
    return first
