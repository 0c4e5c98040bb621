"""Records histories of the workflow: `python tests/replay/record.py NAME…`, or all without a name.

Old histories stay: a workflow that began under an earlier version must go on under this one. Record
anew only what has never been released, or under a new name.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

DATA = Path(__file__).parent / "data"
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]

from integration.fakes.runner_stack import Stack, stack  # noqa: E402 (after the path)
from temporalio.client import WorkflowExecutionStatus  # noqa: E402

from agent_runner.adapters.workflows.temporal import StarterSettings  # noqa: E402
from agent_runner.domain.attempts import AttemptLimits  # noqa: E402
from agent_runner.ports.workflows import (  # noqa: E402
    CLEANUP_WORKFLOW_TYPE,
    FILES_WORKFLOW_TYPE,
    workflow_id,
)
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution  # noqa: E402

ANSWER = "turns: [{steps: [the answer]}]"
TOOLS = "turns: [{steps: [{text: wait, calls: [{name: execute, args: {command: sleep 1}}]}, done]}]"
FAILS = "turns: [{steps: [{text: I try, fail: {kind: no_key, after_tokens: 1}}]}]"
SLOW = "turns: [{steps: [{text: '" + "word " * 500 + "', delay_ms: 20, chunk_tokens: 1}]}]"


async def completed(world: Stack) -> AgentExecution:
    await world.run_worker()
    return await world.create(await world.agent(ANSWER))


async def failed(world: Stack) -> AgentExecution:
    await world.run_worker()
    return await world.create(await world.agent(FAILS))


async def cancelled(world: Stack) -> AgentExecution:
    await world.run_worker()
    created = await world.create(await world.agent(SLOW))
    await world.seen(created, "word word")
    await world.handle(created).cancel()
    return created


async def cancelled_before_it_ran(world: Stack) -> AgentExecution:
    created = await world.create(await world.agent(ANSWER))
    await world.handle(created).cancel()
    return created


async def retried(world: Stack) -> AgentExecution:
    worker = await world.spawn_worker()
    created = await world.create(await world.agent(SLOW))
    await world.seen(created, "word word")
    worker.kill()
    await worker.wait()
    await world.run_worker()
    return created


async def paused(world: Stack) -> AgentExecution:
    """The run that ends by a pause; resuming makes another one."""
    await world.run_worker()
    created = await world.create(await world.agent(TOOLS))
    await world.seen(created, "sleep 1")
    await world.server.services.executions.pause(created.metadata.id)
    return created


async def cancelled_by_the_control_plane(world: Stack) -> AgentExecution:
    """By which the runner says that it was cancelled, rather than Temporal."""
    await world.run_worker()
    created = await world.create(await world.agent(SLOW))
    await world.seen(created, "word word")
    await world.server.services.executions.cancel(created.metadata.id)
    return created


async def handed_over(world: Stack) -> AgentExecution:
    worker = await world.run_worker()
    created = await world.create(await world.agent(TOOLS))
    await world.seen(created, "sleep 1")
    await worker.stop()
    await world.run_worker()
    return created


async def lost_too_often(world: Stack) -> AgentExecution:
    for attempt in (1, 2):
        worker = await world.spawn_worker()
        if attempt == 1:
            created = await world.create(await world.agent(SLOW))
        await world.seen(created, f"attempt: {attempt}")
        worker.kill()
        await worker.wait()
    await world.run_worker()
    return created


async def only_tell_caller(world: Stack) -> AgentExecution:
    """The run after the one that ended, which tells who waits."""
    created = await waiting_caller(world)
    await world.ended(created)
    await closed(world, workflow_id(created.metadata.id))
    spec = created.spec
    await world.server.services.workflows.start(
        created.metadata.id,
        spec.session_id,
        spec.agent_id,
        waiting_caller=True,
        again=True,
        only_tell_caller=True,
    )
    return created


async def clean_up(world: Stack) -> str:
    created = await completed(world)
    await world.ended(created)
    await world.server.services.sessions.delete(created.spec.session_id)
    return f"{CLEANUP_WORKFLOW_TYPE}/{created.spec.session_id}"


async def files_nobody_waits_for(world: Stack) -> str:
    await world.run_worker()
    await world.server.services.workflows.ask_for_files("task-1")
    return f"{FILES_WORKFLOW_TYPE}/task-1"


async def waiting_caller(world: Stack) -> AgentExecution:
    await world.run_worker()
    return await world.create(await world.agent(ANSWER), token=b"nobody's")


async def waiting_caller_of_a_failure(world: Stack) -> AgentExecution:
    await world.run_worker()
    return await world.create(await world.agent(FAILS), token=b"nobody's")


CASES: dict[str, Callable[[Stack], Awaitable[AgentExecution | str]]] = {
    case.__name__: case
    for case in (
        completed,
        failed,
        cancelled,
        cancelled_before_it_ran,
        retried,
        paused,
        waiting_caller,
        waiting_caller_of_a_failure,
        cancelled_by_the_control_plane,
        handed_over,
        lost_too_often,
        only_tell_caller,
        clean_up,
        files_nobody_waits_for,
    )
} | {"full_argument": completed}


async def record(name: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        settings = StarterSettings(full_argument=name == "full_argument")
        async with stack(Path(directory), settings, AttemptLimits(lost=2)) as world:
            made = await CASES[name](world)
            if isinstance(made, AgentExecution) and name != "paused":
                await world.ended(made)
            recorded = made if isinstance(made, str) else workflow_id(made.metadata.id)
            await closed(world, recorded)
            text = (await world.client.get_workflow_handle(recorded).fetch_history()).to_json()
    text = _scrubbed(text.replace(directory, "/data"))
    (DATA / f"{name}.json").write_text(json.dumps(json.loads(text), indent=1) + "\n")


async def closed(world: Stack, recorded: str) -> None:
    handle = world.client.get_workflow_handle(recorded)
    async with asyncio.timeout(120):
        while (await handle.describe()).status is WorkflowExecutionStatus.RUNNING:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def _scrubbed(text: str) -> str:
    """Nothing of the machine it was recorded on."""
    text = re.sub(r'"(identity|stackTrace)": ?"(?:[^"\\]|\\.)*"', r'"\1": "worker"', text)
    text = re.sub(rf"\d+@{re.escape(platform.node())}", "worker@host", text)
    return text.replace(f"{platform.node()}:", "worker:")


async def main(names: list[str]) -> None:
    for name in names or CASES:
        await record(name)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
    os._exit(0)
