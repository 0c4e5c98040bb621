"""Results of tools that are too long for an event, through the whole stack and back."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.fakes.homes import Home, home_with_stack

from agent_runner.client import AgentRunner
from agent_runner.domain.masking import MASK
from agent_runner.domain.tool_results import LONGEST, SHOWN_OF_KEPT
from agent_runner.errors import NotFoundError
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED
from ai.stigmer.commons.apiresource.enum_pb2 import ApiResourceOwnerScope

FLOOD = 'yes "0123456789 abcdefghij $CANARY" | head -c 52428800; echo; echo the end'
TALKER = """
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    method, answer = asked.get("method"), {}
    if method == "initialize":
        info = {"name": "talker", "version": "1"}
        answer = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": info}
    elif method == "tools/list":
        schema = {"type": "object", "properties": {"failing": {"type": "boolean"}}}
        notes = {"readOnlyHint": True}
        answer = {"tools": [{"name": "talk", "inputSchema": schema, "annotations": notes}]}
    elif method == "tools/call":
        text = "".join(f"{number} \\u00fc \\u6f22 {os.environ['KEY']}\\n" for number in range(50_000))
        failing = asked["params"]["arguments"].get("failing", False)
        answer = {"content": [{"type": "text", "text": text}], "isError": failing}
    else:
        continue
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": answer}), flush=True)
"""
TALK = "".join(f"{number} ü 漢 {MASK}\n" for number in range(50_000))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with home_with_stack(tmp_path) as made:
        yield made


def agent(model: str) -> Agent:
    made = Agent(api_version="agentic.stigmer.ai/v1", kind="Agent")
    made.metadata.name, made.metadata.owner_scope = "talker", ApiResourceOwnerScope.organization
    made.metadata.org = "local"
    made.spec.instructions, made.spec.options.model.model_name = "Do what the script says.", model
    server = made.spec.mcp_servers.add(name="talker")
    server.stdio.command = "python3"
    server.stdio.args.extend(["-c", TALKER])
    server.stdio.env_placeholders["KEY"] = "{{CANARY}}"
    return made


def kept(home: Home) -> list[Path]:
    return [path for path in (home.data / "artifacts" / "executions").rglob("*") if path.is_file()]


async def test_long_results_are_read_back_whole_and_masked_and_go_with_their_session(home: Home) -> None:
    canary = f"cnry-{secrets.token_hex(12)}"
    steps = [
        {"calls": [{"name": "execute", "args": {"command": FLOOD}}]},
        {"calls": [{"name": "talk", "args": {}}, {"name": "talk", "args": {"failing": True}}]},
        {"calls": [{"name": "execute", "args": {"command": "echo short"}}]},
        "That was all.",
    ]
    async with AgentRunner(home.address) as client:
        await client.apply(agent(home.script("talker", steps)))
        done = await client.run("talk", agent="talker", secrets={"CANARY": canary})
        texts = {
            call.id: b"".join(
                [part async for part in client.executions.tool_result(done.metadata.id, call.id)]
            )
            for call in done.status.tool_calls
        }

        status = done.status
        assert status.phase == EXECUTION_COMPLETED, status.error
        assert len(status.run.warnings) == 1  # that no model is asked
        assert status.ByteSize() < 8 * 2 * SHOWN_OF_KEPT  # each call shows in two places
        flood, talk, failed, short = status.tool_calls
        assert texts[talk.id].decode() == texts[failed.id].decode() == TALK
        assert texts[short.id].decode() == short.result != "" and not short.artifact_key
        assert len(texts[flood.id]) > 600_000 and texts[flood.id].count(MASK.encode()) > 10_000
        assert "the end" in flood.result and f"tool-output {done.metadata.id} {flood.id}" in flood.result
        for shown, whole in (
            (talk.result, TALK),
            (failed.error, TALK),
            (flood.result, texts[flood.id].decode()),
        ):
            head, _, tail = shown.partition("\n[... ")
            assert whole.startswith(head) and whole.endswith(tail.partition(" ...]\n")[2])
            assert len(shown.encode()) <= SHOWN_OF_KEPT
        assert not any(canary.encode() in text for text in texts.values())

        assert home.run("tool-output", done.metadata.id, talk.id) == TALK
        assert len(kept(home)) == 2  # both talks gave the same text
        assert not any(canary.encode() in path.read_bytes() for path in kept(home))
        await client.delete("session", done.spec.session_id)
        with pytest.raises(NotFoundError):
            await anext(client.executions.tool_result(done.metadata.id, talk.id))
    assert kept(home) == []
    assert not (home.data / "artifacts" / "executions").exists()


async def test_without_an_artifact_store_the_turn_goes_on_and_says_what_is_missing(home: Home) -> None:
    blocked = home.data / "artifacts" / "executions"
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("in the way")
    steps = [{"calls": [{"name": "execute", "args": {"command": "seq 100000"}}]}, "{{last_tool_result}}"]
    async with AgentRunner(home.address) as client:
        made = agent(home.script("counter", steps))
        made.spec.ClearField("mcp_servers")
        await client.apply(made)
        done = await client.run("count", agent="talker")

        status = done.status
        assert status.phase == EXECUTION_COMPLETED, status.error
        assert any("was not kept whole" in warning for warning in status.run.warnings)
        (call,) = status.tool_calls
        assert not call.artifact_key and "they were not kept" in call.result
        assert SHOWN_OF_KEPT < len(call.result.encode()) <= LONGEST
        assert "large_tool_results" in status.messages[-1].content  # the model can read all of it
        blocked.unlink()
        await client.delete("session", done.spec.session_id)
