"""The example with MCP servers, sub-agents and a skill gives the same status on both engines.

The two cannot share an environment, so each is compared with what is written here.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from integration.fakes.homes import ROOT, home_with_stack
from integration.test_mcp_example import EXAMPLE, weather

from agent_runner.client import AgentRunner
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import ExecutionPhase, SubAgentStatus, ToolCallStatus

ENGINE = "graphton" if find_spec("graphton") else "deepagents"
SKILL = ROOT / "examples" / "skills" / "text-statistics"

EXPECTED = {
    "phase": "EXECUTION_COMPLETED",
    "error": "",
    "messages": [
        ("Rome tomorrow?", []),
        ("I ask for the weather and have it converted.", ["task", "task"]),
        ("Now I count the words of my answer.", ["execute", "to_celsius"]),
        ("Rome has 10 degrees and rain tomorrow: pack a coat.", []),
    ],
    "calls": [
        ("converter", "to_celsius", "TOOL_CALL_COMPLETED", "10 degrees Celsius"),
        (
            "forecaster",
            "forecast",
            "TOOL_CALL_COMPLETED",
            "Tomorrow in Rome: 50 degrees Fahrenheit, 4 hours of rain.",
        ),
        ("the agent", "execute", "TOOL_CALL_COMPLETED", "{"),
        ("the agent", "task", "TOOL_CALL_COMPLETED", "10"),
        (
            "the agent",
            "task",
            "TOOL_CALL_COMPLETED",
            "Tomorrow Rome has 50 degrees Fahrenheit and four hours of rain.",
        ),
        ("the agent", "to_celsius", "TOOL_CALL_COMPLETED", "10 degrees Celsius"),
    ],
    "sub_agents": [
        ("converter", "SUB_AGENT_COMPLETED", "50 degrees Fahrenheit", "10"),
        (
            "forecaster",
            "SUB_AGENT_COMPLETED",
            "What is the weather in Rome tomorrow?",
            "Tomorrow Rome has 50 degrees Fahrenheit and four hours of rain.",
        ),
    ],
    "model_calls": 7,
    "skills": ["text-statistics"],
}


def told(status: AgentExecutionStatus) -> dict[str, Any]:
    """What people see of a run, without ids, times, and the words a tool of the engine's own uses."""
    names = {sub.id: sub.name for sub in status.sub_agent_executions}
    return {
        "phase": ExecutionPhase.Name(status.phase),
        "error": status.error,
        "messages": [(m.content, sorted(c.name for c in m.tool_calls)) for m in status.messages],
        "calls": sorted(
            (
                names.get(call.sub_agent_id, "the agent"),
                call.name,
                ToolCallStatus.Name(call.status),
                call.result if call.name != "execute" else call.result[:1],
            )
            for call in status.tool_calls
        ),
        "sub_agents": sorted(
            (sub.name, SubAgentStatus.Name(sub.status), sub.input, sub.output)
            for sub in status.sub_agent_executions
        ),
        "model_calls": status.run.usage.model_calls,
        "skills": [skill.name for skill in status.run.skills],
    }


async def test_the_example_gives_this_status_on_either_engine(tmp_path: Path) -> None:
    with weather() as url, home_with_stack(tmp_path, AGENT_RUNNER_ENGINE=ENGINE) as home:
        home.run("skill", "push", str(SKILL), "--tag", "stable")
        home.run("apply", "-f", str(EXAMPLE / "traveller.yaml"))
        async with AgentRunner(home.address) as client:
            done = await client.run(
                "Rome tomorrow?",
                agent="traveller",
                model=f"script:{EXAMPLE / 'traveller-script.yaml'}",
                env={"WEATHER_URL": url},
            )
    assert done.status.run.engine.startswith(f"{ENGINE} ")
    assert told(done.status) == EXPECTED


def test_the_engine_that_is_not_here_is_refused_in_words(tmp_path: Path) -> None:
    other = "deepagents" if ENGINE == "graphton" else "graphton"
    with home_with_stack(tmp_path, AGENT_RUNNER_ENGINE=ENGINE, AGENT_RUNNER_MODEL="script:demo") as home:
        doctor = home.run("doctor")
        home.env["AGENT_RUNNER_ENGINE"] = other
        refused = home.run("doctor", code=1)
    assert f"engine {ENGINE}" in doctor and "(in use)" in doctor
    assert "AGENT_RUNNER_ENGINE=graphton" in refused or "pip install" in refused
