"""A secret and thirty ways out: none of them leaves it where somebody could find it.

The whole stack runs as a process of its own; afterwards every byte it has stored is searched. Two
places hold the secret on purpose and are left out: the session's own workspace, in which the agent's
commands write what they like, and, where the model itself has said the secret, the checkpoints of that
very session, which are the model's memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from integration.fakes.homes import Home, home_with_stack

from agent_runner.client import AgentRunner
from agent_runner.domain.encodings import forms
from agent_runner.domain.masking import MASK
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution, ToolCall
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED, EXECUTION_FAILED
from ai.stigmer.agentic.agentinstance.v1.api_pb2 import AgentInstance
from ai.stigmer.agentic.environment.v1.api_pb2 import Environment
from ai.stigmer.agentic.session.v1.api_pb2 import Session
from ai.stigmer.commons.apiresource.enum_pb2 import ApiResourceOwnerScope

API = {"api_version": "agentic.stigmer.ai/v1"}

COMMANDS: dict[str, str] = {
    "prints it": 'echo "$CANARY"',
    "prints it on standard error": 'echo "$CANARY" >&2',
    "prints it and fails": 'echo "it was $CANARY"; exit 3',
    "prints it in pieces": 'printf %s "${CANARY:0:9}"; sleep 0.3; printf %s "${CANARY:9}"',
    "prints it at the end of much": 'head -c 400000 /dev/zero | tr "\\0" x; echo "$CANARY"',
    "encodes it as base64": 'printf %s "$CANARY" | base64',
    "encodes it as a part of base64": 'printf %s "user:$CANARY@host" | base64 -w0',
    "encodes it as base64 for addresses": (
        "python3 -c 'import base64, os;"
        ' print(base64.urlsafe_b64encode(b"a" + os.environb[b"CANARY"]).decode())\''
    ),
    "encodes it as base32": 'printf %s "$CANARY" | base32 -w0',
    "encodes it as hexadecimal": "python3 -c 'import os; print(os.environb[b\"CANARY\"].hex())'",
    "encodes it as spaced hexadecimal": 'python3 -c \'import os; print(os.environb[b"CANARY"].hex(" "))\'',
    "encodes it as a list": "python3 -c 'import os; print(list(os.environb[b\"CANARY\"]))'",
    "encodes it for an address": (
        'python3 -c \'import os, urllib.parse as u; print(u.urlencode({"q": os.environ["CANARY"]}))\''
    ),
    "encodes it as JSON": "python3 -c 'import json, os; print(json.dumps(dict(os.environ)))'",
    "reverses it": 'printf %s "$CANARY" | rev',
    "writes it in capitals": 'echo "${CANARY^^}"',
    "spells it": 'printf %s "$CANARY" | fold -w1',
    "rotates it": 'printf %s "$CANARY" | tr A-Za-z N-ZA-Mn-za-m',
    "prints every variable": "env",
    "prints the shell's variables": "set",
    "exports": "export -p",
    "reads it from the process": "cat /proc/self/environ | tr '\\0' ' '",
    "traces its commands": 'set -x; test -n "$CANARY"',
    "raises it": "python3 -c 'import os; raise ValueError(os.environ[\"CANARY\"])'",
    "names a file after it": 'touch "/tmp/$(printf %s "$CANARY" | tr / _)"; cd /tmp; ls | tr _ /',
    "names a missing command after it": '"$CANARY"',
    "writes it into a file": 'echo "key: $CANARY" > /workspace/leak.txt',
}
TOOLS: list[dict[str, Any]] = [
    {"name": "read_file", "args": {"file_path": "/workspace/leak.txt"}},
    {"name": "grep", "args": {"pattern": "key", "path": "/workspace", "output_mode": "content"}},
    {"name": "tell", "args": {"how": "text"}},
    {"name": "tell", "args": {"how": "error"}},
    {"name": "tell", "args": {"how": "structured"}},
    {"name": "tell", "args": {"how": "protocol error"}},
    {"name": "tell", "args": {"how": "die"}},
]
WORKS = "python3 -c 'import hashlib, os; print(hashlib.sha256(os.environb[b\"CANARY\"]).hexdigest())'"

MCP = """
import json, os, sys
canary = os.environ["KEY"]
for line in sys.stdin:
    asked = json.loads(line)
    method, answer = asked.get("method"), {}
    if method == "initialize":
        info = {"name": "teller", "version": "1"}
        answer = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": info}
    elif method == "tools/list":
        schema = {"type": "object", "properties": {"how": {"type": "string"}}}
        answer = {"tools": [{"name": "tell", "inputSchema": schema}]}
    elif method == "tools/call":
        how = asked["params"]["arguments"]["how"]
        if how == "die":
            sys.exit("I die of " + canary)
        text = [{"type": "text", "text": "it is " + canary}]
        answer = {"content": text, "isError": how == "error"}
        if how == "structured":
            answer["structuredContent"] = {"key": canary}
    else:
        continue
    reply = {"jsonrpc": "2.0", "id": asked["id"], "result": answer}
    if method == "tools/call" and how == "protocol error":
        reply = {"jsonrpc": "2.0", "id": asked["id"], "error": {"code": -1, "message": "no " + canary}}
    print(json.dumps(reply), flush=True)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with home_with_stack(tmp_path) as made:
        yield made


@pytest.fixture
def canary() -> str:
    return f"cnry/{secrets.token_hex(8)}+&'={secrets.token_hex(4).upper()}"


def found_in(data: bytes, canary: str) -> list[str]:
    text = data.decode("utf-8", errors="surrogateescape")
    return [form for form in forms(canary) if form in text]


def stored(home: Home) -> Iterator[Path]:
    """Every file of the stack, but for the session's own workspace."""
    for path in home.data.rglob("*"):
        if path.is_file() and (home.data / "sandboxes") not in path.parents:
            yield path


def content(path: Path) -> Iterator[bytes]:
    """The file's bytes and, of a database, each value whole: pages cut long ones in pieces."""
    yield path.read_bytes()
    if path.read_bytes()[:15] == b"SQLite format 3":
        with closing(sqlite3.connect(path)) as database:
            database.text_factory = bytes
            for (table,) in database.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            ).fetchall():
                for row in database.execute(f'SELECT * FROM "{table.decode()}"'):
                    yield b"\n".join(value for value in row if isinstance(value, bytes))


def hits(home: Home, canary: str, *, but: str = "") -> list[str]:
    return [
        f"{path.relative_to(home.data)}: {shapes[:3]}"
        for path in stored(home)
        if not (but and path.name.startswith(but))
        for part in content(path)
        if (shapes := found_in(part, canary))
    ]


async def session_with(client: AgentRunner, model: str, canary: str) -> Session:
    """An agent whose environment has the canary, its MCP servers, and a session with it."""
    environment = Environment(kind="Environment", **API)
    environment.metadata.name, environment.metadata.owner_scope = "keys", ApiResourceOwnerScope.organization
    environment.metadata.org = "local"
    value = environment.spec.data["CANARY"]
    value.value, value.is_secret = canary, True
    shown = await client.apply(environment)
    assert shown.spec.data["CANARY"].value == MASK

    agent = Agent(kind="Agent", **API)
    agent.metadata.name, agent.metadata.owner_scope = "leaky", ApiResourceOwnerScope.organization
    agent.metadata.org = "local"
    agent.spec.instructions, agent.spec.options.model.model_name = "Do what the script says.", model
    agent.spec.env_spec.data["CANARY"].is_secret = True
    for name, script in (("teller", MCP), ("broken", "import os, sys; sys.exit(os.environ['KEY'])")):
        server = agent.spec.mcp_servers.add(name=name)
        server.stdio.command = "python3"
        server.stdio.args.extend(["-c", script])
        server.stdio.env_placeholders["KEY"] = "{{CANARY}}"
    nowhere = agent.spec.mcp_servers.add(name="nowhere")
    nowhere.http.url = "http://127.0.0.1:9/mcp"
    nowhere.http.headers["X-Key"] = nowhere.http.query_params["key"] = "{{CANARY}}"
    made = await client.apply(agent)

    instance = AgentInstance(kind="AgentInstance", **API)
    instance.metadata.name, instance.metadata.owner_scope = "leaky-keys", ApiResourceOwnerScope.organization
    instance.metadata.org, instance.spec.agent_id = "local", made.metadata.id
    instance.spec.environment_refs.add(slug="keys")
    session = Session(kind="Session", **API)
    session.metadata.name, session.metadata.owner_scope = "leak", ApiResourceOwnerScope.organization
    session.metadata.org = "local"
    session.spec.agent_instance_id = (await client.apply(instance)).metadata.id
    return await client.apply(session)


async def events_of(client: AgentRunner, execution: AgentExecution) -> bytes:
    return b"\n".join([str(event).encode() async for event in client.watch(execution.metadata.id)])


async def test_thirty_ways_out_and_no_secret_found(home: Home, canary: str) -> None:
    calls = [{"name": "execute", "args": {"command": command}} for command in (*COMMANDS.values(), WORKS)]
    steps = [{"calls": [call]} for call in (*calls, *TOOLS)]
    steps.append(
        {"calls": [{"name": "task", "args": {"subagent_type": "general-purpose", "description": "x"}}]}
    )
    model = home.script("leaky", [*steps, "That was all."])
    runtime, public = f"run-{secrets.token_hex(12)}", f"pub-{secrets.token_hex(12)}"
    async with AgentRunner(home.address) as client:
        session = await session_with(client, model, canary)
        done = await client.run(
            "leak it", session=session.metadata.id, secrets={"EXTRA": runtime}, env={"PUBLIC": public}
        )
        events = await events_of(client, done)
        # Made at the start, gone soon after the end.
        async with asyncio.timeout(120):
            while [context async for context in client.list("contexts")]:  # noqa: ASYNC110 (the server is asked)
                await asyncio.sleep(0.05)

    status = done.status
    assert status.phase == EXECUTION_COMPLETED, status.error
    own = [call for call in status.tool_calls if not call.sub_agent_id]
    by_command = {call.args["command"]: call for call in own if call.name == "execute"}
    assert hashlib.sha256(canary.encode()).hexdigest() in by_command[WORKS].result
    _each_way_was_tried(own, by_command)
    assert len(status.tool_calls) > len(own)  # the sub-agent has done it all again
    assert any("'broken' cannot be used: it has ended: " + MASK in w for w in status.run.warnings)
    assert any("'nowhere' cannot be used: nobody answers" in w for w in status.run.warnings)
    assert done.spec.runtime_env["EXTRA"].value == MASK

    assert not found_in(done.SerializeToString(), canary)
    assert not found_in(events, canary)
    assert MASK.encode() in events
    printed = home.run("down")
    _the_search_finds_what_is_no_secret(home, public, done.metadata.id)
    for secret in (canary, runtime):
        assert hits(home, secret) == []
        assert not found_in(printed.encode(), secret)


def _the_search_finds_what_is_no_secret(home: Home, public: str, execution_id: str) -> None:
    """Or finding nothing would prove nothing."""
    assert {hit.split(":")[0] for hit in hits(home, public)} >= {"control-plane.db", "checkpoints.db"}
    places = " ".join(hits(home, execution_id))
    for place in ("control-plane.db", "checkpoints.db", "temporal/", "logs/"):
        assert place in places, f"{place} was not searched: {places}"


def _each_way_was_tried(calls: Any, by_command: dict[Any, ToolCall]) -> None:
    for name, command in COMMANDS.items():
        call = by_command[command]
        said = call.result + call.error
        assert MASK in said or name == "writes it into a file", f"{name}: {said[:300]!r}"
    others = [call for call in calls if call.name in ("read_file", "grep", "tell")]
    assert len(others) == len(TOOLS)
    for call in others:
        assert MASK in call.result + call.error, f"{call.name}: {call.result[:300]!r} {call.error[:300]!r}"


async def test_what_the_model_itself_says_is_masked_everywhere_but_in_its_memory(
    home: Home, canary: str
) -> None:
    words = [canary[i : i + 3] for i in range(0, len(canary), 3)]
    model = home.script(
        "blab",
        [
            {"text": f"I know {canary}, that is {''.join(words)[::-1]}."},
        ],
    )
    calls = home.script(
        "calls",
        [
            {"text": canary, "calls": [{"name": canary[:12], "args": {canary: [canary]}}]},
            {
                "calls": [
                    {"name": "write_todos", "args": {"todos": [{"content": canary, "status": "pending"}]}}
                ]
            },
            {"calls": [{"name": "execute", "raw_args": f'{{"command": "{canary}'}]},
            {"fail": {"kind": "bug", "message": f"refused: {canary}"}},
        ],
    )
    async with AgentRunner(home.address) as client:
        session = await session_with(client, model, canary)
        said = await client.run("say it", session=session.metadata.id)
        failed = await client.run("call it", session=session.metadata.id, model=calls)
        events = await events_of(client, said) + await events_of(client, failed)

    assert said.status.phase == EXECUTION_COMPLETED, said.status.error
    assert said.status.messages[-1].content == f"I know {MASK}, that is {MASK}."
    assert failed.status.phase == EXECUTION_FAILED
    assert f"refused: {MASK}" in failed.status.error
    assert not found_in(events + failed.SerializeToString() + said.SerializeToString(), canary)
    printed = home.run("down")
    assert hits(home, canary, but="checkpoints.db") == []
    assert not found_in(printed.encode(), canary)
