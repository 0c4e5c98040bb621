"""Records the engine's own streams as fixtures for the normalizer: `python record_streams.py`.

A fixture is {"engine", "items": [[namespace, mode, data], …]}. Messages are cut to what rules may look
at, and ids are renumbered in order of appearance. Events the journal got stand in their place among the
items with the mode `journal`.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contract.agent_bench import Bench, Journal, MemoryCheckpoints
from google.protobuf.json_format import MessageToDict

from agent_runner.adapters.agents.deepagents import DeepAgentsFactory, session
from agent_runner.adapters.agents.model_calls import RetryPolicy
from agent_runner.adapters.agents.normalizer import Normalizer
from agent_runner.adapters.agents.signals import ToolOutput, Warned
from agent_runner.adapters.models.script import ScriptLibrary
from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.ports.agents import SubAgentSpecification
from agent_runner.ports.sandboxes import SandboxSpec
from agent_runner.v1.events_pb2 import ExecutionEvent

FOLDER = Path(__file__).parents[2] / "data" / "streams"

SCENARIOS = {
    "plain": "turns: [{steps: [{thinking: hm, text: The answer is forty two}]}]",
    "todos": """
turns:
  - steps:
      - calls:
          - name: write_todos
            args: {todos: [{content: a, status: in_progress}, {content: b, status: pending}]}
      - calls: [{name: write_todos, args: {todos: [{content: a, status: completed}]}}]
      - done
""",
    "files": """
turns:
  - steps:
      - text: I write it
        calls: [{name: write_file, args: {file_path: /workspace/a.txt, content: one}}]
      - text: and look
        calls:
          - {name: read_file, args: {file_path: /workspace/a.txt}}
          - {name: read_file, args: {file_path: /workspace/missing.txt}}
      - done
""",
    "execute": """
turns:
  - steps:
      - calls:
          - {name: execute, args: {command: "echo same; exit 3"}}
          - {name: execute, args: {command: "echo same; exit 3"}}
      - done
""",
    "errors": """
turns:
  - steps:
      - text: three mistakes
        calls:
          - {name: no_such_tool, args: {x: 1}}
          - {name: ls, args: {path: {wrong: 1}}}
          - {name: task, args: {description: x, subagent_type: nobody}}
      - done
""",
    "sub-agents": """
turns:
  - when: {system: HELPER}
    steps:
      - text: "working on {{message}}"
        calls: [{name: execute, args: {command: "echo from {{message}}"}}]
      - "finished {{message}}"
  - steps:
      - text: both
        calls:
          - {name: task, args: {description: one, subagent_type: helper}}
          - {name: task, args: {description: two, subagent_type: helper}}
      - "all done"
""",
    "retry": """
turns:
  - steps:
      - text: one two three four five
        chunk_tokens: 1
        fail: {kind: dropped, times: 1, after_tokens: 3}
""",
}

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class _Recorder(Normalizer):
    items: list[Any]

    def events(self, namespace: tuple[str, ...], mode: str, data: Any) -> Iterator[ExecutionEvent]:
        self.items.append([list(namespace), mode, plain(data)])
        return super().events(namespace, mode, data)


def plain(data: Any) -> Any:
    """Data as JSON has it; messages as what they are made of."""
    if isinstance(data, ToolOutput | Warned):
        fields = {name: getattr(data, name) for name in data.__slots__}
        return {"signal": type(data).__name__, **fields}
    if hasattr(data, "type") and hasattr(data, "content"):
        wanted = ("type", "id", "content", "name", "tool_calls", "usage_metadata", "tool_call_id", "status")
        wanted += ("tool_call_chunks", "chunk_position")
        return {name: plain(getattr(data, name)) for name in wanted if getattr(data, name, None)}
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    return data if isinstance(data, str | int | float | bool | None) else str(data)


async def record(name: str, script: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        provider = LocalProvider(Path(folder) / "sandboxes")
        sandbox = await provider.ensure(SandboxSpec(session_id=f"ses-{name}"))
        factory = DeepAgentsFactory(MemoryCheckpoints(), retries=RetryPolicy(first_delay=0.01))
        bench = Bench(factory, sandbox, Path(folder), ScriptLibrary())
        bench.sub_agents = [SubAgentSpecification("helper", "Helps", "You are the HELPER")]
        items: list[Any] = []
        _Recorder.items = items

        def journalled(event: ExecutionEvent) -> None:
            items.append([[], "journal", MessageToDict(event, preserving_proto_field_name=True)])

        await bench.run(script, journal=Journal(on_begin=journalled, on_finish=journalled))
        await provider.delete(f"ses-{name}")
        await provider.aclose()
    text = json.dumps({"engine": factory.engine, "items": items}, ensure_ascii=False)
    seen: dict[str, str] = {}
    text = _UUID.sub(lambda found: seen.setdefault(found[0], f"id-{len(seen) + 1}"), text)
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in json.loads(text)["items"])
    (FOLDER / f"{name}.json").write_text(f'{{"engine": "{factory.engine}", "items": [\n{lines}\n]}}\n')


async def main() -> None:
    session.Normalizer = _Recorder  # type: ignore[misc]
    for name, script in SCENARIOS.items():
        await record(name, script)


if __name__ == "__main__":
    asyncio.run(main())
