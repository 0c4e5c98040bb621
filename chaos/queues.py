"""Many messages sent at once into few sessions: each runs once, in order."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

from agent_runner.client import AgentRunner
from agent_runner.domain.phases import is_terminal, phase_word
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED
from chaos.checks import Findings, Session, check_order
from chaos.clusters import Cluster, cluster
from chaos.loads import Load
from chaos.reports import say
from chaos.scripts import write_script

_SENDERS = 50
_PER_EXECUTION = timedelta(seconds=2)


async def queues(folder: Path, *, seed: int, messages: int, sessions: int, workers: int) -> list[str]:
    """Send all, wait, and compare each session's log of turns with the order of creation."""
    async with cluster(folder, workers=workers, concurrency=50) as made:
        load = Load(made.address, made.address, f"{seed:x}-{int(time.time()):x}", random.Random(seed))
        turns = [{"steps": [{"text": "Heard {{message}}, after {{previous_message}}."}]}]
        async with AgentRunner(made.address, org="local") as runner:
            agent = await load.make_agent(runner, write_script(folder / "queue.yaml", turns, 0))
            # Ids are the server's: ones chosen here would be the order, whenever they arrived.
            opened = [
                load.add(await runner.executions.start(f"first of {number}", agent_id=agent))
                for number in range(sessions)
            ]
            began = time.monotonic()
            await _send(load, runner, [watched.session_id for watched in opened], messages)
            sent = time.monotonic() - began
            say(f"{messages} messages into {sessions} sessions: taken at {messages / sent:.0f} /s")
            await _drained(runner, load, messages, began)
        return await _judge(made, load, messages + sessions)


async def _send(load: Load, runner: AgentRunner, sessions: list[str], messages: int) -> None:
    gate = asyncio.Semaphore(_SENDERS)

    async def send(number: int) -> None:
        async with gate:
            session_id = sessions[number % len(sessions)]
            load.add(await runner.executions.start(f"n{number}", session_id=session_id))

    async with asyncio.TaskGroup() as group:
        for number in range(messages):
            group.create_task(send(number))


async def _drained(runner: AgentRunner, load: Load, messages: int, began: float) -> None:
    """Wait for the last message of each session, which is the last one to run."""
    limit = (_PER_EXECUTION * messages).total_seconds() + 120
    done = 0

    async def last_of(execution_id: str) -> None:
        nonlocal done
        async for _ in runner.executions.watch(execution_id):
            pass
        done += 1
        if done % max(len(load.sessions) // 5, 1) == 0:
            say(f"{done} of {len(load.sessions)} sessions are through")

    async with asyncio.timeout(limit), asyncio.TaskGroup() as group:
        for members in load.sessions.values():
            group.create_task(last_of(max(watched.execution_id for watched in members)))
    elapsed = time.monotonic() - began
    say(f"all done after {elapsed:.1f} s: {messages / elapsed:.1f} executions per second")


async def _judge(made: Cluster, load: Load, expected: int) -> list[str]:
    found, problems = Findings(), []
    heard = 0
    async with AgentRunner(made.address, org="local") as runner:
        for session_id, members in load.sessions.items():
            members.sort(key=lambda watched: watched.execution_id)
            session: list[tuple[str, list]] = []  # type: ignore[type-arg]
            before = ""
            for member in members:
                execution = await runner.executions.get(member.execution_id)
                log = [event async for event in runner.executions.watch(member.execution_id)]
                session.append((member.execution_id, log))
                found.phases[phase_word(execution.status.phase)] += 1
                problems += _heard_in_turn(execution, before)
                before = execution.spec.message
                heard += 1
            _check(session, session_id, found)
    say(f"{heard} executions: {dict(found.phases)}, longest silence {found.longest_silence:.1f} s")
    if heard != expected:
        problems.append(f"{expected} were sent, {heard} are there")
    return problems + found.problems


def _check(session: Session, session_id: str, found: Findings) -> None:
    check_order(session, found)
    attempts = Counter(
        name for name, log in session for e in log if e.WhichOneof("event") == "attempt_started"
    )
    found.problems += [f"{session_id}: {name} ran {n} times" for name, n in attempts.items() if n != 1]


def _heard_in_turn(execution: AgentExecution, before: str) -> list[str]:
    """The thread remembers the message before: what the model was shown is the order they ran in."""
    name, status = execution.metadata.id, execution.status
    if not is_terminal(status.phase) or status.phase != EXECUTION_COMPLETED:
        return [f"{name}: {phase_word(status.phase)} {status.error}"]
    said = [message.content for message in status.messages][-1]
    previous = before or "{{previous_message}}"
    wanted = f"Heard {execution.spec.message}, after {previous if before else ''}."
    return [] if said == wanted else [f"{name}: said {said!r}, not {wanted!r}"]
