"""The example with two MCP servers, two sub-agents and a skill, end to end on the real stack."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from integration.fakes.homes import ROOT, home_with_stack

from agent_runner.adapters.machine.ports import free_port
from agent_runner.client import AgentRunner
from agent_runner.domain.masking import MASK
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_COMPLETED,
    SUB_AGENT_COMPLETED,
    TOOL_CALL_COMPLETED,
)

EXAMPLE = ROOT / "examples" / "mcp"


@contextmanager
def weather() -> Iterator[str]:
    """The example's server; gives its address."""
    port = free_port()
    process = subprocess.Popen([sys.executable, str(EXAMPLE / "weather_server.py"), str(port)])
    try:
        deadline = time.monotonic() + 300
        while True:
            with socket.socket() as asking:
                if asking.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)  # a foreign process: there is no event to wait for
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(300)


async def test_servers_sub_agents_and_a_skill_work_together(tmp_path: Path) -> None:
    with weather() as url, home_with_stack(tmp_path) as home:
        home.run("skill", "push", str(ROOT / "examples" / "skills" / "text-statistics"), "--tag", "stable")
        home.run("apply", "-f", str(EXAMPLE / "traveller.yaml"))
        async with AgentRunner(home.address) as client:
            done = await client.run(
                "Rome tomorrow?",
                agent="traveller",
                model=f"script:{EXAMPLE / 'traveller-script.yaml'}",
                env={"WEATHER_URL": url},
            )
            agent = await client.get("agent", "traveller")
        explained = home.run("env", "explain", "--session", done.spec.session_id)

    status = done.status
    assert status.phase == EXECUTION_COMPLETED, status.error
    assert list(status.run.warnings) == ["Answers come from a script; no model is asked."]
    assert status.messages[-1].content == "Rome has 10 degrees and rain tomorrow: pack a coat."
    subs = {sub.name: sub for sub in status.sub_agent_executions}
    assert {(name, sub.status) for name, sub in subs.items()} == {
        ("forecaster", SUB_AGENT_COMPLETED),
        ("converter", SUB_AGENT_COMPLETED),
    }
    assert subs["converter"].output == "10"
    assert subs["forecaster"].input == "What is the weather in Rome tomorrow?"
    of = {sub.id: name for name, sub in subs.items()}
    calls = [(of.get(call.sub_agent_id, "-"), call.name, call.result) for call in status.tool_calls]
    assert ("forecaster", "forecast", "Tomorrow in Rome: 50 degrees Fahrenheit, 4 hours of rain.") in calls
    assert ("converter", "to_celsius", "10 degrees Celsius") in calls
    assert ("-", "to_celsius", "10 degrees Celsius") in calls
    assert {call.status for call in status.tool_calls} == {TOOL_CALL_COMPLETED}
    assert [skill.name for skill in status.run.skills] == ["text-statistics"]
    assert status.run.usage.model_calls == 7

    assert agent.spec.env_spec.data["WEATHER_KEY"].value == MASK  # type: ignore[attr-defined]
    assert "not-a-real-key" not in explained
    rows = {line.split()[0]: line.split() for line in explained.splitlines()}
    assert rows["WEATHER_KEY"][1:3] == [MASK, "agent"]
