"""What every engine does behind the `AgentFactory` port, with a scripted model and a real sandbox."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from contract.agent_bench import ENGINES, Bench, Journal
from google.protobuf.json_format import MessageToDict
from langchain_core.tools import tool

from agent_runner.adapters.checkpoints.sqlite import SqliteCheckpoints
from agent_runner.adapters.models.script import ScriptLibrary
from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.domain.masking import Masker
from agent_runner.errors import (
    FencedError,
    LimitReachedError,
    ModelError,
    ModelUnavailableError,
    UnavailableError,
)
from agent_runner.ports.agents import (
    DrainedError,
    RecordedCall,
    ShownResult,
    SteeringMessage,
    SubAgentSpecification,
    Turn,
)
from agent_runner.ports.sandboxes import SandboxSpec
from agent_runner.v1.events_pb2 import AttemptStarted, ExecutionEvent
from agent_runner.v1.options_pb2 import Limits
from agent_runner.v1.status_pb2 import Usage
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus, ToolCall
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    SUB_AGENT_COMPLETED,
    TODO_COMPLETED,
    TOOL_CALL_COMPLETED,
    TOOL_CALL_FAILED,
)


@pytest.fixture(params=ENGINES)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    provider = LocalProvider(tmp_path / "sandboxes")
    try:
        sandbox = await provider.ensure(SandboxSpec(session_id="ses-1"))
        (tmp_path / "scripts").mkdir()
        async with SqliteCheckpoints(tmp_path / "checkpoints.db") as checkpoints:
            factory = ENGINES[request.param](checkpoints)
            yield Bench(factory, sandbox, tmp_path / "scripts", ScriptLibrary())
    finally:
        await provider.delete("ses-1")
        await provider.aclose()


def keeps_long_texts_in_files(bench: Bench) -> None:
    """Skips on Graphton, which cuts long results with a notice, and passes long messages on."""
    if bench.factory.engine.startswith("graphton"):
        pytest.skip("Graphton keeps no long texts in files")


async def content(bench: Bench, path: str) -> str:
    found, problem = (await bench.sandbox.get([path]))[0]
    assert problem is None, problem
    return (found or b"").decode()


async def test_a_plain_answer_streams_and_is_whole(bench: Bench) -> None:
    journal = await bench.run("turns: [{steps: [{text: The answer is forty two, chunk_tokens: 1}]}]")
    kinds = journal.kinds()
    assert kinds[0] == "message_started"
    assert kinds.count("message_delta") >= 5
    assert kinds[-2:] == ["message_completed", "usage_reported"]
    status = journal.status
    assert [m.content for m in status.messages] == ["The answer is forty two"]
    assert not status.messages[0].streaming
    assert status.run.usage.model_calls == 1
    assert status.run.usage.input_tokens > 0
    assert bench.factory.engine.startswith(("deepagents 0.", "graphton 1."))


async def test_the_second_turn_knows_the_first_and_other_threads_do_not(bench: Bench) -> None:
    script = "turns: [{steps: [one]}, {steps: ['before: {{previous_message}}']}]"
    await bench.run(script, bench.turn("my name is Ada"))
    second = await bench.run(script, bench.turn("who am I?"))
    assert [m.content for m in second.status.messages] == ["before: my name is Ada"]
    other = await bench.run(script, bench.turn("who am I?", "thread-2"))
    assert [m.content for m in other.status.messages] == ["one"]


async def test_todos_come_whole_each_time(bench: Bench) -> None:
    journal = await bench.run(
        """
turns:
  - steps:
      - calls:
          - name: write_todos
            args: {todos: [{content: a, status: in_progress}, {content: b, status: pending}]}
      - calls: [{name: write_todos, args: {todos: [{content: a, status: completed}]}}]
      - done
"""
    )
    changes = [e.todos_changed for e in journal.events if e.HasField("todos_changed")]
    assert [[(t.id, t.content) for t in change.todos] for change in changes] == [
        [("1", "a"), ("2", "b")],
        [("1", "a")],
    ]
    assert [t.status for t in journal.status.todos.values()] == [TODO_COMPLETED]


async def test_todos_written_twice_at_once_are_refused(bench: Bench) -> None:
    call = "{name: write_todos, args: {todos: [{content: a, status: pending}]}}"
    journal = await bench.run(f"turns: [{{steps: [{{calls: [{call}, {call}]}}, {{calls: [{call}]}}, done]}}]")
    calls = journal.status.tool_calls
    assert [c.status for c in calls] == [TOOL_CALL_FAILED, TOOL_CALL_FAILED, TOOL_CALL_COMPLETED]
    assert "only once" in calls[0].error
    assert len(journal.status.todos) == 1


async def test_file_tools_work_in_the_sandbox(bench: Bench) -> None:
    journal = await bench.run(
        """
turns:
  - steps:
      - calls: [{name: write_file, args: {file_path: /workspace/a.txt, content: "one\\ntwo\\n"}}]
      - calls: [{name: edit_file, args: {file_path: /workspace/a.txt, old_string: two, new_string: "2"}}]
      - calls:
          - {name: read_file, args: {file_path: /workspace/a.txt}}
          - {name: ls, args: {path: /workspace}}
          - {name: grep, args: {pattern: one, path: /workspace}}
          - {name: read_file, args: {file_path: /workspace/missing.txt}}
      - done
"""
    )
    assert await content(bench, "/workspace/a.txt") == "one\n2\n"
    calls = {(c.name, c.args.fields["file_path"].string_value): c for c in journal.status.tool_calls}
    assert "one" in calls["read_file", "/workspace/a.txt"].result
    assert "a.txt" in calls["ls", ""].result
    missing = calls["read_file", "/workspace/missing.txt"]
    assert missing.status == TOOL_CALL_FAILED and "not" in missing.error


async def test_a_command_shows_its_output_while_it_runs(bench: Bench) -> None:
    command = "echo line 1; until [ -e go ]; do sleep 0.05; done; echo line 2; echo line 3; exit 3"
    script = f"turns: [{{steps: [{{calls: [{{name: execute, args: {{command: '{command}'}}}}]}}, done]}}]"
    journal = Journal()
    async with bench.session(script, journal) as session:
        async for event in session.run(bench.turn()):
            journal.take(event)
            if event.HasField("tool_call_output"):
                await bench.sandbox.put([("go", b"")])
    kinds = journal.kinds()
    outputs = [e.tool_call_output.text for e in journal.events if e.HasField("tool_call_output")]
    assert "".join(outputs) == "line 1\nline 2\nline 3\n" and len(outputs) > 1
    started, ended = kinds.index("tool_call_started"), kinds.index("tool_call_completed")
    places = [place for place, kind in enumerate(kinds) if kind == "tool_call_output"]
    assert started < min(places) and max(places) < ended
    call = journal.status.tool_calls[0]
    assert call.status == TOOL_CALL_COMPLETED
    assert "line 3" in call.result and "exit code 3" in call.result


async def test_text_before_and_after_a_call_stays_apart(bench: Bench) -> None:
    journal = await bench.run(
        "turns: [{steps: [{text: before, calls: [{name: ls, args: {path: /workspace}}]}, after]}]"
    )
    status = journal.status
    assert [(m.content, len(m.tool_calls)) for m in status.messages] == [("before", 1), ("after", 0)]
    assert status.messages[0].tool_calls[0].status == TOOL_CALL_COMPLETED
    kinds = journal.kinds()
    assert kinds.index("message_completed") < kinds.index("tool_call_started")


async def test_identical_parallel_calls_are_kept_apart(bench: Bench) -> None:
    call = "{name: execute, args: {command: echo same}}"
    journal = await bench.run(f"turns: [{{steps: [{{calls: [{call}, {call}, {call}]}}, done]}}]")
    calls = journal.status.tool_calls
    assert len({c.id for c in calls}) == 3
    assert all(c.result.startswith("same") for c in calls)


async def test_parallel_calls_run_at_once(bench: Bench) -> None:
    together = asyncio.Barrier(3)

    @tool
    async def meet() -> str:
        """Wait for two others."""
        async with asyncio.timeout(120):
            await together.wait()
        return "met"

    bench.tools = [meet]
    journal = await bench.run("turns: [{steps: [{calls: [{name: meet}, {name: meet}, {name: meet}]}, done]}]")
    assert [c.result for c in journal.status.tool_calls] == ["met"] * 3


async def test_a_raising_tool_is_an_error_the_model_reads(bench: Bench) -> None:
    @tool
    async def divide(a: int, b: int) -> int:
        """Divide."""
        return a // b

    bench.tools = [divide]
    journal = await bench.run(
        "turns: [{steps: [{calls: [{name: divide, args: {a: 1, b: 0}}]}, 'I read: {{last_tool_result}}']}]"
    )
    call = journal.status.tool_calls[0]
    assert call.status == TOOL_CALL_FAILED
    assert "ZeroDivisionError" in call.error
    assert "ZeroDivisionError" in journal.status.messages[-1].content


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("{name: no_such_tool, args: {x: 1}}", "not a valid tool"),
        ("{name: ls, args: {path: {wrong: 1}}}", "valid string"),
        ("{name: read_file, args: {}}", "path"),
        ("{name: task, args: {description: x, subagent_type: nobody}}", "does not exist"),
    ],
)
async def test_wrong_calls_fail_and_the_model_goes_on(bench: Bench, call: str, words: str) -> None:
    journal = await bench.run(f"turns: [{{steps: [{{calls: [{call}]}}, done]}}]")
    shown = journal.status.tool_calls[0]
    assert words in shown.error + shown.result
    assert journal.status.messages[-1].content == "done"
    assert not journal.status.sub_agent_executions


@pytest.mark.parametrize(
    "raw",
    [
        '{"file_path": "/workspace/x", "content": "half',
        "garbage <x>",
        "[1, 2]",
        '"text"',
        '{"file_path": "/workspace/x", "content": NaN}',
        f'{{"file_path": "/workspace/x", "content": "x", "more": {10**40}}}',
        f'{{"file_path": "/workspace/x", "content": "x", "more": {"[" * 200}{"]" * 200}}}',
        f'{{"file_path": "/workspace/x", "content": "x", "more": {"[" * 5000}{"]" * 5000}}}',
    ],
)
async def test_arguments_that_did_not_come_whole_run_nothing(bench: Bench, raw: str) -> None:
    call = f"{{name: write_file, raw_args: {json.dumps(raw)}}}"
    journal = await bench.run(f"turns: [{{steps: [{{calls: [{call}]}}, 'read: {{{{last_tool_result}}}}']}}]")
    assert (await bench.sandbox.get(["/workspace/x"]))[0][1] is not None
    shown = journal.status.tool_calls[0]
    assert shown.status == TOOL_CALL_FAILED
    assert "not a whole JSON object" in shown.error
    assert "not a whole JSON object" in journal.status.messages[-1].content


async def test_half_a_character_is_replaced_wherever_a_model_says_it(bench: Bench) -> None:
    raw = json.dumps({"file_path": "/workspace/x", "content": "a\ud83d b"})
    journal = await bench.run(
        f"""
turns:
  - steps:
      - {{text: "one \\ud83d", calls: [{{name: write_file, raw_args: {json.dumps(raw)}}}]}}
      - {{text: "two \\ude00"}}
"""
    )
    assert [m.content for m in journal.status.messages] == ["one \ufffd", "two \ufffd"]
    assert journal.status.tool_calls[0].args["content"] == "a\ufffd b"
    assert await content(bench, "/workspace/x") == "a\ufffd b"


async def test_arguments_nested_deep_reach_the_tool_and_are_shown_as_text_below(bench: Bench) -> None:
    given: list[object] = []

    @tool
    def plant(tree: object) -> str:
        """Plant it."""
        given.append(tree)
        return "planted"

    bench.tools = [plant]
    tree = '{"a":' * 50 + "1" + "}" * 50
    raw = json.dumps(f'{{"tree": {tree}}}')
    journal = await bench.run(f"turns: [{{steps: [{{calls: [{{name: plant, raw_args: {raw}}}]}}, done]}}]")

    assert given == [json.loads(tree)]
    again = AgentExecutionStatus.FromString(journal.status.SerializeToString())
    assert "planted" in again.tool_calls[0].result
    assert MessageToDict(again.tool_calls[0].args).keys() == {"tree"}


async def test_calls_numbered_anew_in_each_answer_are_kept_apart(bench: Bench) -> None:
    bench.sub_agents = [HELPER]
    journal = await bench.run(
        """
turns:
  - when: {system: HELPER}
    steps: [{calls: [{name: execute, id: call_0, args: {command: echo sub}}]}, sub]
  - steps:
      - calls: [{name: execute, id: call_0, args: {command: echo one}}]
      - calls:
          - {name: execute, id: call_0, args: {command: echo two}}
          - {name: execute, id: call_0, args: {command: echo three}}
          - {name: task, id: call_0, args: {description: x, subagent_type: helper}}
      - done
"""
    )
    calls = journal.status.tool_calls
    assert len({c.id for c in calls}) == 5
    assert sorted(c.result.split()[0] for c in calls) == ["one", "sub", "sub", "three", "two"]


async def test_forty_calls_at_once_all_answer(bench: Bench) -> None:
    calls = ", ".join(f"{{name: execute, args: {{command: echo {n}}}}}" for n in range(40))
    journal = await bench.run(f"turns: [{{steps: [{{calls: [{calls}]}}, done]}}]")
    assert sorted(int(c.result.split()[0]) for c in journal.status.tool_calls) == list(range(40))


SUB_AGENTS = """
turns:
  - when: {system: HELPER}
    steps:
      - text: "working on {{message}}"
        calls: [{name: execute, args: {command: "echo from {{message}}"}}]
      - "finished {{message}}: {{last_tool_result}}"
  - steps:
      - text: both
        calls:
          - {name: task, args: {description: one, subagent_type: helper}}
          - {name: task, args: {description: two, subagent_type: helper}}
          - {name: task, args: {description: two, subagent_type: helper}}
      - "all done"
"""
HELPER = SubAgentSpecification("helper", "Helps", "You are the HELPER")


async def test_sub_agents_run_in_parallel_and_their_events_are_theirs(bench: Bench) -> None:
    bench.sub_agents = [HELPER]
    journal = await bench.run(SUB_AGENTS)
    status = journal.status
    assert [m.content for m in status.messages] == ["both", "all done"]
    assert sorted(s.input for s in status.sub_agent_executions) == ["one", "two", "two"]
    for sub_agent in status.sub_agent_executions:
        assert (sub_agent.name, sub_agent.status) == ("helper", SUB_AGENT_COMPLETED)
        assert sub_agent.output.startswith(f"finished {sub_agent.input}: from {sub_agent.input}")
        assert sub_agent.messages[0].content == f"working on {sub_agent.input}"
        own = [c for c in status.tool_calls if c.sub_agent_id == sub_agent.id]
        assert [c.name for c in own] == ["execute"]
    assert {c.name for c in status.tool_calls if not c.sub_agent_id} == {"task"}
    assert status.run.usage.model_calls == 2 + 3 * 2
    outputs = [e for e in journal.events if e.HasField("tool_call_output")]
    assert {e.sub_agent_id for e in outputs} == {s.id for s in status.sub_agent_executions}


async def test_the_general_purpose_sub_agent_is_there_and_guarded(bench: Bench) -> None:
    journal = await bench.run(
        """
turns:
  - when: {message: "sub work"}
    steps: [{calls: [{name: execute, args: {command: echo hi}}]}, "sub answer"]
  - steps:
      - calls: [{name: task, args: {description: sub work, subagent_type: general-purpose}}]
      - done
"""
    )
    assert journal.began == ["task", "execute"]
    assert journal.status.sub_agent_executions[0].output == "sub answer"


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("no_key", ModelError, "does not accept the key"),
        ("no_credit", ModelError, "no credit"),
        ("unknown_model", ModelError, "does not know the model"),
        ("too_long", ModelError, "too long"),
        ("bug", ModelError, "failed"),
        ("rate_limit", ModelUnavailableError, "busy"),
        ("overloaded", ModelUnavailableError, "reached"),
        ("dropped", ModelUnavailableError, "reached"),
        ("timeout", ModelUnavailableError, "reached"),
    ],
)
async def test_a_failing_model_is_told_in_plain_words(
    bench: Bench, kind: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(ModelError, match=words) as raised:
        await bench.run(f"turns: [{{steps: [{{text: x, fail: {{kind: {kind}, retry_after: 0}}}}]}}]")
    assert type(raised.value) is error


async def test_a_busy_model_is_asked_again_and_the_text_begins_anew(bench: Bench) -> None:
    journal = await bench.run(
        "turns: [{steps: [{text: one two three four five, chunk_tokens: 1,"
        " fail: {kind: dropped, times: 2, after_tokens: 3}}]}]"
    )
    status = journal.status
    assert [m.content for m in status.messages] == ["one two three four five"]
    assert journal.kinds().count("message_started") == 3
    assert any("asked again" in warning for warning in status.run.warnings)


async def test_a_model_failing_in_a_sub_agent_ends_the_turn(bench: Bench) -> None:
    bench.sub_agents = [HELPER]
    with pytest.raises(ModelError, match="no credit"):
        await bench.run(
            """
turns:
  - {when: {system: HELPER}, steps: [{text: x, fail: {kind: no_credit}}]}
  - steps: [{calls: [{name: task, args: {description: one, subagent_type: helper}}]}, done]
"""
        )


LOOP = "turns: [{loop: true, steps: [{calls: [{name: ls, args: {path: /workspace}}]}]}]"


@pytest.mark.parametrize(
    ("limits", "word", "calls"),
    [
        (Limits(model_calls=3), "model_calls = 3", 3),
        (Limits(tool_calls=2), "tool_calls = 2", 2),
        (Limits(tokens=1), "tokens = 1", 1),
    ],
)
async def test_a_limit_ends_the_turn_by_name(bench: Bench, limits: Limits, word: str, calls: int) -> None:
    bench.limits = limits
    journal = Journal()
    with pytest.raises(LimitReachedError, match=word):
        await bench.run(LOOP, journal=journal)
    assert len(journal.began) == calls


@pytest.mark.parametrize(
    ("limits", "used", "tool_calls", "word"),
    [
        (Limits(tokens=500), Usage(input_tokens=400, output_tokens=100), 0, "tokens"),
        (Limits(cost_usd=0.5), Usage(cost_usd=0.5), 0, "cost_usd"),
        (Limits(model_calls=7), Usage(model_calls=7), 0, "model_calls"),
        (Limits(tool_calls=4), Usage(), 4, "tool_calls"),
    ],
)
async def test_what_earlier_attempts_used_counts(
    bench: Bench, limits: Limits, used: Usage, tool_calls: int, word: str
) -> None:
    bench.limits, bench.used, bench.used_tool_calls = limits, used, tool_calls
    journal = Journal()
    with pytest.raises(LimitReachedError, match=word):
        await bench.run(LOOP, journal=journal)
    assert not journal.began


async def test_an_agent_in_a_circle_is_told_and_then_stopped(bench: Bench) -> None:
    journal = Journal()
    script = LOOP.replace("{calls: [", "{text: '{{last_tool_result}}', calls: [")
    with pytest.raises(LimitReachedError, match="repeated steps = 6"):
        await bench.run(script, journal=journal)
    assert len(journal.began) == 6
    told = ["Notice: the last steps were the same" in m.content for m in journal.status.messages]
    assert told == [False, False, False, True, True, True]
    assert any("repeats" in warning for warning in journal.status.run.warnings)


async def test_limits_count_sub_agents(bench: Bench) -> None:
    bench.sub_agents, bench.limits = [HELPER], Limits(tool_calls=4)
    journal = Journal()
    with pytest.raises(LimitReachedError, match="tool_calls = 4"):
        await bench.run(SUB_AGENTS, journal=journal)
    assert len(journal.began) == 4


async def test_cancelling_stops_the_command(bench: Bench) -> None:
    journal, printed = Journal(), asyncio.Event()
    command = "echo on; sleep 661.25; touch /workspace/late"
    script = f"turns: [{{steps: [{{calls: [{{name: execute, args: {{command: '{command}'}}}}]}}, x]}}]"

    async def consume() -> None:
        async with bench.session(script, journal) as session:
            async for event in session.run(bench.turn()):
                if event.HasField("tool_call_output"):
                    printed.set()

    running = asyncio.create_task(consume())
    async with asyncio.timeout(120):
        await printed.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert not _processes_with("sleep 661.25")
    assert journal.calls
    assert not any(call.finished for call in journal.calls.values())


def _processes_with(words: str) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if words in line and process.status() != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found


async def test_a_fenced_attempt_runs_no_tool(bench: Bench) -> None:
    def refuse(event: ExecutionEvent) -> None:
        raise FencedError("e", 1, 2)

    journal = Journal(on_begin=refuse)
    with pytest.raises(FencedError):
        await bench.run(
            "turns: [{steps: [{calls: [{name: execute, args: {command: touch /workspace/x}}]}, done]}]",
            journal=journal,
        )
    assert (await bench.sandbox.get(["/workspace/x"]))[0][1] is not None


WORK = """
turns:
  - steps:
      - text: first
        calls: [{name: execute, args: {command: "echo a >> /workspace/log"}}]
      - text: second
        calls: [{name: execute, args: {command: "echo b >> /workspace/log"}}]
      - text: "third {{last_tool_result}}"
"""


async def crashed(bench: Bench, script: str, turn: Turn, journal: Journal, after: Callable[[], bool]) -> None:
    """Run the turn until the condition holds after an event, then abandon it like a killed worker."""

    async def attempt() -> None:
        async with bench.session(script, journal) as session:
            async for event in session.run(turn):
                journal.take(event)
                if after():
                    return

    await attempt()


async def resumed(bench: Bench, script: str, turn: Turn, journal: Journal) -> None:
    journal.next_attempt()
    async with bench.session(script, journal) as session:
        assert await session.unfinished(turn)
        async for event in session.run(turn):
            journal.take(event)


async def test_a_resumed_turn_repeats_no_finished_tool(bench: Bench) -> None:
    turn, journal = bench.turn(), Journal()
    await crashed(bench, WORK, turn, journal, lambda: "second" in str(journal.events[-1]))
    await resumed(bench, WORK, turn, journal)
    assert await content(bench, "/workspace/log") == "a\nb\n"
    status = journal.status
    assert [m.content.split()[0] for m in status.messages] == ["first", "second", "third"]
    assert [c.status for c in status.tool_calls] == [TOOL_CALL_COMPLETED] * 2


async def test_a_finished_call_whose_step_was_not_saved_gives_its_recorded_result(bench: Bench) -> None:
    turn, journal = bench.turn(), Journal()

    def die(event: ExecutionEvent) -> None:
        journal.take(event)
        done = event.tool_call_completed
        journal.calls[done.tool_call_id] = RecordedCall(True, False, "from the journal")
        raise RuntimeError("the worker died")

    journal.on_finish = die
    with pytest.raises(RuntimeError, match="died"):
        await bench.run(WORK, turn, journal)
    await resumed(bench, WORK.replace("second\n", '"second {{last_tool_result}}"\n'), turn, journal)
    assert await content(bench, "/workspace/log") == "a\nb\n"
    assert [m.content for m in journal.status.messages][1] == "second from the journal"


class KeepsAll:
    """A `ResultKeeper` that shows nothing of what it keeps."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    async def shown(self, tool_call_id: str, text: str) -> ShownResult:
        self.kept[tool_call_id] = text
        return ShownResult("the ends", "the key")

    async def whole(self, tool_call_id: str, shown: str) -> str:
        return self.kept.get(tool_call_id, shown)


async def test_after_a_crash_the_model_gets_a_kept_result_as_it_would_have(bench: Bench) -> None:
    script = """
turns:
  - steps:
      - calls:
          - {name: execute, args: {command: "echo a >> log; seq 100000"}}
          - {name: execute, args: {command: "seq 100000; exit 3"}}
      - "{{last_tool_result}}"
      - calls: [{name: execute, args: {command: "find /tmp -size +99k | sort | xargs -r cat | sha1sum"}}]
      - "{{last_tool_result}}"
"""
    bench.results = keeper = KeepsAll()
    undisturbed = await bench.run(script, bench.turn(thread="thread-0"))
    await bench.sandbox.exec("rm -rf /tmp/* log")
    keeper.kept.clear()
    turn, journal = bench.turn(), Journal()
    finished: list[ExecutionEvent] = []

    def die(event: ExecutionEvent) -> None:
        finished.append(event)
        journal.take(event)
        if len(finished) == 2:
            raise RuntimeError("the worker died")

    journal.on_finish = die
    with pytest.raises(RuntimeError, match="died"):
        await bench.run(script, turn, journal)
    await resumed(bench, script, turn, journal)

    assert await content(bench, "/workspace/log") == "a\n"
    assert [m.content for m in journal.status.messages] == [m.content for m in undisturbed.status.messages]
    assert {(c.result, c.artifact_key) for c in journal.status.tool_calls} == {("the ends", "the key")}


ROUNDS = """
turns:
  - when: {system: HELPER}
    steps: [{text: looks, calls: [{name: ls, args: {path: /workspace}}]}, "said {{message}}"]
  - steps:
      - text: first
        calls:
          - {name: ls, args: {path: /workspace}}
          - {name: read_file, args: {file_path: /workspace/none}}
      - {text: second, calls: [{name: write_todos, args: {todos: [{content: new, status: pending}]}}]}
      - {text: third, calls: [{name: task, args: {description: one, subagent_type: helper}}]}
      - {text: fourth, calls: [{name: note, args: {}}]}
      - {text: fifth, calls: [{name: ls, args: {path: /workspace}}]}
      - all done
"""


async def test_whenever_a_worker_dies_with_what_it_has_not_sent_the_next_one_tells_it(bench: Bench) -> None:
    @tool
    def note() -> str:
        """Note it."""
        return "noted"

    bench.sub_agents, bench.tools = [HELPER], [note]
    undisturbed = await bench.run(ROUNDS, bench.turn(thread="undisturbed"))
    for count in range(1, len(undisturbed.events)):
        turn, journal = bench.turn(thread=f"after {count}"), Journal()
        async with bench.session(ROUNDS, journal) as session, aclosing(session.run(turn)) as events:
            async for event in events:
                journal.take(event)
                if len(journal.events) >= count:
                    break
        log = Journal()
        for event in journal.events[: _waited_for(journal.events)]:
            log.take(event)
        log.take(ExecutionEvent(attempt_started=AttemptStarted(worker="next")))
        log.next_attempt()
        await bench.run(ROUNDS, turn, log)
        assert _shown(log) == _shown(undisturbed), count


def _waited_for(events: Sequence[ExecutionEvent]) -> int:
    """How many events are stored for sure: up to the last of a tool with effects."""
    calls = {e.tool_call_started.tool_call_id for e in events if e.tool_call_started.name == "note"}
    ids = [e.tool_call_started.tool_call_id or e.tool_call_completed.tool_call_id for e in events]
    return max((place for place, call_id in enumerate(ids, 1) if call_id in calls), default=0)


def _shown(journal: Journal) -> object:
    status = journal.status
    return (
        [(m.content, m.streaming, sorted(map(_shown_call, m.tool_calls))) for m in status.messages],
        sorted(_shown_call(call) for call in status.tool_calls if not call.sub_agent_id),
        [(sub.name, sub.status, sub.output) for sub in status.sub_agent_executions],
        [todo.content for todo in status.todos.values()],
    )


def _shown_call(call: ToolCall) -> tuple[str, int, str, str]:
    return call.name, call.status, call.result, call.error


async def test_a_call_cut_off_is_told_to_the_model_and_not_repeated(bench: Bench) -> None:
    script = """
turns:
  - steps:
      - calls:
          - {name: execute, args: {command: "echo a >> /workspace/log; echo up; sleep 3600"}}
          - {name: ls, args: {path: /workspace}}
      - "{{last_tool_result}}"
"""
    turn, journal = bench.turn(), Journal()
    await crashed(bench, script, turn, journal, lambda: journal.kinds()[-1] == "tool_call_output")
    ls = next(key for key, call in journal.calls.items() if key.endswith("_2"))
    journal.calls[ls] = RecordedCall(finished=False)
    await resumed(bench, script, turn, journal)
    assert await content(bench, "/workspace/log") == "a\n"
    execute, listing = journal.status.tool_calls
    assert execute.status == TOOL_CALL_FAILED and "interrupted" in execute.error
    assert listing.status == TOOL_CALL_COMPLETED
    assert [e.tool_call_failed.interrupted for e in journal.events if e.HasField("tool_call_failed")] == [
        True
    ]


async def test_a_crash_in_the_first_answer_asks_again(bench: Bench) -> None:
    script = "turns: [{steps: [{text: a b c d e f, chunk_tokens: 1}]}]"
    turn, journal = bench.turn(), Journal()
    await crashed(bench, script, turn, journal, lambda: journal.kinds()[-1] == "message_delta")
    await resumed(bench, script, turn, journal)
    assert [m.content for m in journal.status.messages] == ["a b c d e f"]


async def test_a_turn_that_had_ended_only_tells_its_end_again(bench: Bench) -> None:
    script = "turns: [{steps: [{calls: [{name: ls, args: {path: /workspace}}]}, the end]}]"
    turn = bench.turn()
    first = await bench.run(script, turn)
    again = Journal(calls=first.calls)
    await resumed(bench, script, turn, again)
    assert not again.began
    assert [e.message_started.content for e in again.events if e.HasField("message_started")] == ["the end"]
    assert again.status.messages[0].id == first.status.messages[-1].id


async def test_a_new_turn_after_a_broken_one_begins_fresh(bench: Bench) -> None:
    script = WORK.replace("turns:", "turns:\n  - {when: next, steps: [fresh]}")
    turn, journal = bench.turn(), Journal()
    await crashed(bench, script, turn, journal, lambda: "second" in str(journal.events[-1]))
    after = bench.turn("next")
    async with bench.session(script, Journal()) as session:
        assert not await session.unfinished(after)
    done = await bench.run(script, after)
    assert [m.content for m in done.status.messages] == ["fresh"]
    assert not done.began


async def test_sub_agents_of_a_resumed_turn_repeat_no_finished_tool(bench: Bench) -> None:
    bench.sub_agents = [HELPER]
    script = """
turns:
  - when: {system: HELPER}
    steps:
      - calls: [{name: execute, args: {command: "echo {{message}} >> /workspace/log"}}]
      - text: "said {{message}}"
      - "never"
  - steps:
      - calls: [{name: task, args: {description: one, subagent_type: helper}}]
      - "all done"
"""
    turn, journal = bench.turn(), Journal()
    await crashed(bench, script, turn, journal, lambda: "said" in str(journal.events[-1]))
    await resumed(bench, script, turn, journal)
    assert await content(bench, "/workspace/log") == "one\n"
    status = journal.status
    assert [m.content for m in status.messages][-1] == "all done"
    assert [s.output for s in status.sub_agent_executions] == ["said one"]
    assert all(c.status == TOOL_CALL_COMPLETED for c in status.tool_calls)


async def test_a_resumed_turn_tells_its_todos_and_not_those_of_earlier_turns(bench: Bench) -> None:
    script = """
turns:
  - steps:
      - calls: [{name: write_todos, args: {todos: [{content: old, status: completed}]}}]
      - "one"
  - steps:
      - calls: [{name: ls, args: {path: /workspace}}]
      - "two"
  - steps:
      - calls: [{name: write_todos, args: {todos: [{content: new, status: pending}]}}]
      - "three"
"""
    await bench.run(script)
    for todos in ([], ["new"]):
        turn, journal = bench.turn(), Journal()
        await crashed(
            bench, script, turn, journal, lambda log=journal: log.kinds().count("message_started") == 2
        )
        again = Journal(calls=journal.calls)
        await resumed(bench, script, turn, again)
        assert [t.content for t in again.status.todos.values()] == todos


async def test_parallel_sub_agents_resume_each_where_it_was(bench: Bench) -> None:
    bench.sub_agents = [HELPER]
    script = """
turns:
  - when: {system: HELPER, message: quick}
    steps: [{calls: [{name: execute, args: {command: "echo quick >> /workspace/log"}}]}, "quick done"]
  - when: {system: HELPER}
    steps:
      - calls:
          - name: execute
            args: {command: "echo slow >> /workspace/log; while [ ! -e go ]; do sleep 0.05; done"}
      - {text: "slow is at it"}
      - "slow done"
  - steps:
      - calls:
          - {name: task, args: {description: quick, subagent_type: helper}}
          - {name: task, args: {description: slow, subagent_type: helper}}
      - "all done"
"""
    turn, journal = bench.turn(), Journal()
    going: list[asyncio.Task[object]] = []

    def abandon() -> bool:
        if not going and any(event.HasField("sub_agent_completed") for event in journal.events):
            going.append(asyncio.create_task(bench.sandbox.put([("go", b"")])))
        return "at it" in str(journal.events[-1])

    await crashed(bench, script, turn, journal, abandon)
    await asyncio.gather(*going)
    assert sum(call.finished for call in journal.calls.values()) >= 3
    await resumed(bench, script, turn, journal)
    assert sorted((await content(bench, "/workspace/log")).split()) == ["quick", "slow"]
    status = journal.status
    assert sorted(s.output for s in status.sub_agent_executions) == ["quick done", "slow is at it"]
    assert {s.status for s in status.sub_agent_executions} == {SUB_AGENT_COMPLETED}
    assert status.messages[-1].content == "all done"


async def test_an_attempt_that_comes_back_changes_nothing_the_agent_remembers(bench: Bench) -> None:
    script = """
turns:
  - steps: [{calls: [{name: look, args: {}}]}, {text: "the answer of {{last_tool_result}}"}]
"""
    called, thawed = asyncio.Event(), asyncio.Event()

    @tool
    async def look() -> str:
        """Look."""
        if called.is_set():
            return "the living"
        called.set()
        await thawed.wait()
        return "the frozen"

    look.metadata = {"readOnlyHint": True}
    bench.tools = [look]
    turn = bench.turn()
    frozen = asyncio.create_task(bench.run(script, turn))
    await called.wait()
    await bench.run(script, replace(turn, attempt=2))

    thawed.set()
    with pytest.raises(UnavailableError, match="Another attempt"):
        await frozen
    with pytest.raises(FencedError):
        await bench.run(script, turn)
    async with bench.session(script, Journal()) as session:
        known = await session._graph.aget_state({"configurable": {"thread_id": turn.thread_id}})
    assert [m.content for m in known.values["messages"]] == [
        "go",
        "",
        "the living",
        "the answer of the living",
    ]


async def test_draining_stops_at_a_checkpoint_and_another_goes_on(bench: Bench) -> None:
    turn, journal = bench.turn(), Journal()
    async with bench.session(WORK, journal) as session:
        with pytest.raises(DrainedError):
            async for event in session.run(turn):
                journal.take(event)
                if event.HasField("message_started"):
                    session.request_drain("worker stops")
    await resumed(bench, WORK, turn, journal)
    assert await content(bench, "/workspace/log") == "a\nb\n"
    assert [m.content.split()[0] for m in journal.status.messages] == ["first", "second", "third"]


async def test_draining_reaches_sub_agents(bench: Bench) -> None:
    bench.sub_agents = [HELPER]
    script = """
turns:
  - when: {system: HELPER}
    steps:
      - calls: [{name: execute, args: {command: "echo a >> /workspace/log"}}]
      - calls: [{name: execute, args: {command: "echo b >> /workspace/log"}}]
      - "sub done"
  - steps:
      - calls: [{name: task, args: {description: one, subagent_type: helper}}]
      - "all done"
"""
    turn, journal = bench.turn(), Journal()
    async with bench.session(script, journal) as session:

        def drain(event: ExecutionEvent) -> None:
            if event.tool_call_started.name == "execute":
                session.request_drain("worker stops")

        journal.on_begin = drain
        with pytest.raises(DrainedError):
            async for event in session.run(turn):
                journal.take(event)
    assert await content(bench, "/workspace/log") == "a\n"
    await resumed(bench, script, turn, journal)
    assert await content(bench, "/workspace/log") == "a\nb\n"
    status = journal.status
    assert [s.output for s in status.sub_agent_executions] == ["sub done"]
    assert status.messages[-1].content == "all done"
    assert all(c.status == TOOL_CALL_COMPLETED for c in status.tool_calls)


async def test_secrets_are_out_of_results_before_the_model_reads_them(bench: Bench) -> None:
    @tool
    async def blocks() -> list[dict[str, str]]:
        """Give blocks."""
        return [{"type": "text", "text": "block hunter2-secret"}]

    @tool
    async def failing() -> str:
        """Fail."""
        raise ValueError("no hunter2-secret here")

    bench.tools, bench.mask = [blocks, failing], Masker(["hunter2-secret"]).value
    todo = "{todos: [{content: hunter2-secret, status: pending}]}"
    journal = await bench.run(
        f"""
turns:
  - steps:
      - text: a
        calls: [{{name: execute, args: {{command: "yes hunter2-$(echo secret) | head -20000"}}}}]
      - {{text: "{{{{last_tool_result}}}}", calls: [{{name: blocks}}]}}
      - {{text: "{{{{last_tool_result}}}}", calls: [{{name: failing}}]}}
      - {{text: "{{{{last_tool_result}}}}", calls: [{{name: write_todos, args: {todo}}}]}}
      - text: "{{{{last_tool_result}}}}"
        calls: [{{name: execute, args: {{command: "cat /tmp/agent-runner/*/* | grep -c hunter2-s; true"}}}}]
      - "{{{{last_tool_result}}}}"
"""
    )
    told = "".join(m.content for m in journal.status.messages)
    assert "hunter2-secret" not in told
    assert told.count("********") > 4
    assert all("hunter2-secret" not in c.result + c.error for c in journal.status.tool_calls)
    assert journal.status.messages[-1].content.startswith("0\n")
    assert all("hunter2" not in t.content for t in journal.status.todos.values())


async def test_a_result_too_long_for_the_model_is_kept_in_a_file(bench: Bench) -> None:
    keeps_long_texts_in_files(bench)
    journal = await bench.run(
        """
turns:
  - steps:
      - calls: [{name: execute, args: {command: "yes 0123456789 | head -c 200000"}}]
      - text: "{{last_tool_result}}"
        calls: [{name: execute, args: {command: "wc -c /tmp/agent-runner/large_tool_results/*"}}]
      - "{{last_tool_result}}"
"""
    )
    read = journal.status.messages[1].content
    assert len(read) < 50_000
    assert "/tmp/agent-runner/large_tool_results/" in read
    assert journal.status.messages[2].content.strip().startswith("2")
    assert len(journal.status.tool_calls[0].result) > 199_000


async def test_a_message_too_long_for_the_model_is_answered(bench: Bench) -> None:
    keeps_long_texts_in_files(bench)
    journal = await bench.run("turns: [{steps: [ok]}]", bench.turn("word " * 1_000_000))
    assert [m.content for m in journal.status.messages] == ["ok"]
    assert journal.status.run.usage.input_tokens < 50_000


async def test_the_model_is_told_where_files_are(bench: Bench) -> None:
    journal = await bench.run(
        "turns: [{when: {system: /workspace/notes.md}, steps: [told]}, {steps: [not told]}]"
    )
    assert journal.status.messages[0].content == "told"


async def test_a_conversation_the_model_finds_too_long_is_shortened(bench: Bench) -> None:
    script = """
turns:
  - {when: {system: "(?i)context extraction"}, steps: ["a summary"]}
  - {when: {message: finish, turn: 13}, steps: [{text: x, fail: {kind: too_long}}]}
  - {when: finish, steps: ["after shortening, turn {{turn}}"]}
  - steps: ["filler"]
"""
    for number in range(12):
        await bench.run(script, bench.turn(f"message {number} " + "word " * 400))
    journal = await bench.run(script, bench.turn("finish"))
    assert journal.status.messages[-1].content.startswith("after shortening")
    assert len(journal.status.messages) == 1
    assert journal.status.run.usage.model_calls >= 1


async def test_a_message_that_joins_is_in_the_conversation_also_when_that_is_shortened(bench: Bench) -> None:
    script = """
turns:
  - {when: {system: "(?i)context extraction"}, steps: ["a summary"]}
  - {when: {message: this too, turn: 14}, steps: [{text: x, fail: {kind: too_long}}]}
  - {when: this too, steps: ["with it, turn {{turn}}"]}
  - steps: ["filler"]
"""
    for number in range(12):
        await bench.run(script, bench.turn(f"message {number} " + "word " * 400))
    bench.steering = [SteeringMessage("joining", "this too")]
    journal = await bench.run(script, bench.turn("finish"))
    assert [m.content.split(", ")[0] for m in journal.status.messages] == ["this too", "with it"]
    assert journal.kinds().count("steering_joined") == 1


async def test_that_a_message_has_joined_is_told_again_by_the_next_attempt(bench: Bench) -> None:
    script = """
turns:
  - {when: this too, steps: [{text: with it, calls: [{name: ls, args: {path: /workspace}}]}, done]}
  - steps: [without it]
"""
    bench.steering = [SteeringMessage("joining", "this too")]
    turn, lost = bench.turn(), Journal()
    async with bench.session(script, lost) as session, aclosing(session.run(turn)) as events:
        async for event in events:
            lost.take(event)
            if event.HasField("tool_call_completed"):
                break
    journal = await bench.run(script, turn)
    assert [m.content for m in journal.status.messages] == ["this too", "with it", "done"]
    assert list(journal.status.run.joined) == ["joining"]


async def test_a_failing_summary_is_told_as_the_models_failure(bench: Bench) -> None:
    script = """
turns:
  - {when: {message: "(?i)context extraction"}, steps: [{text: x, fail: {kind: no_credit}}]}
  - {when: {message: finish, turn: 13}, steps: [{text: x, fail: {kind: too_long}}]}
  - steps: ["filler"]
"""
    for number in range(12):
        await bench.run(script, bench.turn(f"message {number} " + "word " * 400))
    with pytest.raises(ModelError, match=r"no credit|too long"):
        await bench.run(script, bench.turn("finish"))


async def test_a_retried_call_counts_once_against_the_limit(bench: Bench) -> None:
    bench.limits = Limits(model_calls=1)
    journal = await bench.run("turns: [{steps: [{text: ok, fail: {kind: rate_limit, times: 2}}]}]")
    assert [m.content for m in journal.status.messages] == ["ok"]


async def test_a_turn_cancelled_in_its_answer_leaves_the_thread_usable(bench: Bench) -> None:
    script = """
turns:
  - when: first
    steps:
      - {text: "one two", calls: [{name: execute, args: {command: "true"}}]}
      - {text: one two three four five six seven eight, first_token_ms: 600000}
  - steps: ["before: {{previous_message}}"]
"""
    begun = asyncio.Event()

    async def consume() -> None:
        async with bench.session(script, Journal()) as session:
            async for _ in session.run(bench.turn("first")):
                begun.set()

    running = asyncio.create_task(consume())
    async with asyncio.timeout(120):
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    after = await bench.run(script, bench.turn("second"))
    assert [m.content for m in after.status.messages] == ["before: first"]
