"""What every Checkpoints adapter keeps: agents remember, resume and survive pruning.

The library's own SQLite saver runs beside ours where it is installed, as the measure of what a saver
must do.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from deepagents import create_deep_agent
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.types import Command

from agent_runner.adapters.checkpoints.sqlite import SqliteCheckpoints
from agent_runner.ports.agents import Checkpoints

Answer = AIMessage | Exception


class ScriptedModel(BaseChatModel):
    """Gives the next answer of a script, and keeps what it was asked."""

    script: Iterator[Answer]
    asked: list[list[BaseMessage]]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, *args: Any, **options: Any) -> ScriptedModel:
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> ChatResult:
        self.asked.append(list(messages))
        answer = next(self.script)
        if isinstance(answer, Exception):
            raise answer
        return ChatResult(generations=[ChatGeneration(message=answer)])


def calls(*named: tuple[str, dict[str, Any]], start: int = 0) -> AIMessage:
    """An answer that asks for tools."""
    return AIMessage(
        content="",
        tool_calls=[
            {"name": name, "args": args, "id": f"call-{start}-{number}"}
            for number, (name, args) in enumerate(named)
        ],
    )


def chatter(turns: int) -> Iterator[Answer]:
    """Per turn one tool call and one answer."""
    for turn in range(turns):
        yield calls(("note", {"text": f"note {turn}"}), start=turn)
        yield AIMessage(content=f"answer {turn}")


class Notebook:
    """A tool that counts its runs, and can be told to fail."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.broken: set[str] = set()

    def tool(self) -> Any:
        @tool
        async def note(text: str) -> str:
            """Write a note."""
            if text in self.broken:
                raise ConnectionError(f"cannot note {text}")
            self.notes.append(text)
            return f"noted {text}"

        return note


class Agent:
    """A deep agent with a scripted model over a saver."""

    def __init__(
        self, saver: BaseCheckpointSaver[Any], script: Iterator[Answer] | Sequence[Answer], **options: Any
    ) -> None:
        self.model = ScriptedModel(script=iter(script), asked=[])
        self.notebook = Notebook()
        self.graph: Any = create_deep_agent(
            model=self.model, tools=[self.notebook.tool()], checkpointer=saver, **options
        )

    async def turn(self, message: Any, thread: str = "thread-1", **options: Any) -> None:
        given = {"messages": [("user", message)]} if isinstance(message, str) else message
        async for _ in self.graph.astream(given, at(thread), stream_mode="updates", **options):
            pass

    async def conversation(self, thread: str = "thread-1") -> list[str]:
        state = await self.graph.aget_state(at(thread))
        return [message.text for message in state.values.get("messages", [])]


def at(thread: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread}, "metadata": {"execution_id": f"ex of {thread}"}}


def expected_conversation(turns: int) -> list[str]:
    lines: list[str] = []
    for turn in range(turns):
        lines += [f"message {turn}", "", f"noted note {turn}", f"answer {turn}"]
    return lines


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Checkpoints]:
    async with SqliteCheckpoints(folder / "checkpoints.db") as checkpoints:
        yield checkpoints


ADAPTERS: dict[str, Callable[[Path], AbstractAsyncContextManager[Checkpoints]]] = {"sqlite": sqlite}


@asynccontextmanager
async def own_saver(folder: Path) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    async with sqlite(folder) as checkpoints:
        yield checkpoints.saver


@asynccontextmanager
async def library_saver(folder: Path) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    async with AsyncSqliteSaver.from_conn_string(str(folder / "library.db")) as saver:
        yield saver


SAVERS: dict[str, Callable[[Path], AbstractAsyncContextManager[BaseCheckpointSaver[Any]]]] = {
    "sqlite": own_saver
}
if importlib.util.find_spec("langgraph.checkpoint.sqlite"):
    SAVERS["library"] = library_saver


@pytest.fixture(params=ADAPTERS)
async def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Checkpoints]:
    async with ADAPTERS[request.param](tmp_path) as opened:
        yield opened


@pytest.fixture(params=SAVERS)
async def saver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    async with SAVERS[request.param](tmp_path) as opened:
        yield opened


DURABILITIES = ["sync", "async", "exit"]


# What a saver keeps, the library's as well as ours


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_a_conversation_is_remembered_over_many_turns(
    saver: BaseCheckpointSaver[Any], durability: str
) -> None:
    agent = Agent(saver, chatter(30))
    for turn in range(30):
        await agent.turn(f"message {turn}", durability=durability)

    assert await agent.conversation() == expected_conversation(30)
    last_question = [m.text for m in agent.model.asked[-1] if m.type != "system"]
    assert last_question == expected_conversation(30)[:-1]
    assert await agent.conversation("thread-2") == []


async def test_a_turn_cut_off_by_a_failure_goes_on_where_it_was(saver: BaseCheckpointSaver[Any]) -> None:
    script = [
        calls(("note", {"text": "one"})),
        RuntimeError("the model went away"),
        AIMessage(content="done"),
    ]
    agent = Agent(saver, script)
    with pytest.raises(RuntimeError, match="went away"):
        await agent.turn("go")

    state = await agent.graph.aget_state(at("thread-1"))
    assert state.next == ("model",)
    assert state.metadata["execution_id"] == "ex of thread-1"
    await agent.turn(None)

    assert await agent.conversation() == ["go", "", "noted one", "done"]
    assert agent.notebook.notes == ["one"]


@pytest.mark.parametrize("durability", ["sync", "async"])
async def test_a_tool_that_finished_beside_a_failing_one_is_not_run_again(
    saver: BaseCheckpointSaver[Any], durability: str
) -> None:
    script = [calls(("note", {"text": "good"}), ("note", {"text": "bad"})), AIMessage(content="done")]
    agent = Agent(saver, script)
    agent.notebook.broken = {"bad"}
    with pytest.raises(ConnectionError):
        await agent.turn("go", durability=durability)
    finished_before = list(agent.notebook.notes)
    agent.notebook.broken = set()
    await agent.turn(None, durability=durability)

    assert sorted(agent.notebook.notes) == ["bad", "good"]
    assert finished_before in ([], ["good"])
    assert (await agent.conversation())[-3:] == ["noted good", "noted bad", "done"]


async def test_an_interrupted_turn_is_resumed_with_a_decision(saver: BaseCheckpointSaver[Any]) -> None:
    script = [calls(("note", {"text": "risky"})), AIMessage(content="done")]
    agent = Agent(saver, script, interrupt_on={"note": True})
    await agent.turn("go")
    state = await agent.graph.aget_state(at("thread-1"))
    assert state.interrupts
    assert agent.notebook.notes == []

    await agent.turn(Command(resume={"decisions": [{"type": "approve"}]}))

    assert agent.notebook.notes == ["risky"]
    assert (await agent.conversation())[-1] == "done"


async def test_threads_running_at_once_do_not_mix(saver: BaseCheckpointSaver[Any]) -> None:
    async def talk(thread: str) -> list[str]:
        agent = Agent(saver, chatter(3))
        for turn in range(3):
            await agent.turn(f"message {turn}", thread)
        return await agent.conversation(thread)

    conversations = await asyncio.gather(*(talk(f"thread-{number}") for number in range(8)))
    assert conversations == [expected_conversation(3)] * 8


async def test_a_branch_from_an_older_checkpoint_sees_only_its_own_past(
    saver: BaseCheckpointSaver[Any],
) -> None:
    agent = Agent(saver, [*chatter(2), AIMessage(content="another end")])
    for turn in range(2):
        await agent.turn(f"message {turn}")
    snapshots = [snapshot async for snapshot in agent.graph.aget_state_history(at("thread-1"))]
    first_turn = next(s for s in snapshots if len(s.values["messages"]) == 4 and not s.next)

    async for _ in agent.graph.astream({"messages": [("user", "instead")]}, first_turn.config):
        pass

    assert await agent.conversation() == [*expected_conversation(1), "instead", "another end"]


async def test_checkpoints_are_listed_from_new_to_old_by_what_is_known_of_them(
    saver: BaseCheckpointSaver[Any],
) -> None:
    agent = Agent(saver, chatter(4))
    for turn in range(2):
        await agent.turn(f"message {turn}")
        await agent.turn(f"message {turn}", "thread-2")

    all_of_one = [found async for found in saver.alist(at("thread-1"))]
    ids = [found.checkpoint["id"] for found in all_of_one]
    assert ids == sorted(ids, reverse=True)
    assert [f.metadata["step"] for f in all_of_one] == list(range(len(ids) - 2, -2, -1))
    assert [f.checkpoint["id"] async for f in saver.alist(at("thread-1"), limit=3)] == ids[:3]
    before = all_of_one[2].config
    assert [f.checkpoint["id"] async for f in saver.alist(at("thread-1"), before=before)] == ids[3:]
    inputs = [f async for f in saver.alist(at("thread-1"), filter={"source": "input"})]
    assert len(inputs) == 2
    mine = [f async for f in saver.alist(None, filter={"execution_id": "ex of thread-2", "step": 0})]
    assert [f.config["configurable"]["thread_id"] for f in mine] == ["thread-2"]


async def test_it_serves_graphs_that_run_without_an_event_loop(saver: BaseCheckpointSaver[Any]) -> None:
    script = [calls(("write_todos", {"todos": []})), AIMessage(content="one"), AIMessage(content="two")]
    agent = Agent(saver, script)

    def talk() -> list[str]:
        for message in ("first", "second"):
            agent.graph.invoke({"messages": [("user", message)]}, at("thread-1"))
        return [message.text for message in agent.graph.get_state(at("thread-1")).values["messages"]]

    conversation = await asyncio.to_thread(talk)
    assert [conversation[0], *conversation[3:]] == ["first", "one", "second", "two"]


async def test_a_deleted_thread_is_forgotten(saver: BaseCheckpointSaver[Any]) -> None:
    agent = Agent(saver, chatter(2))
    await agent.turn("message 0")
    await agent.turn("message 1", "thread-2")
    await saver.adelete_thread("thread-1")

    assert await saver.aget_tuple(at("thread-1")) is None
    assert await agent.conversation() == []
    assert len(await agent.conversation("thread-2")) == 4


# Ours and the library's side by side


@pytest.mark.skipif("library" not in SAVERS, reason="langgraph-checkpoint-sqlite is not installed")
async def test_states_and_history_are_those_of_the_library(tmp_path: Path) -> None:
    async def history(saver: BaseCheckpointSaver[Any]) -> list[Any]:
        script = list(chatter(20))
        script[5] = RuntimeError("once")
        agent = Agent(saver, script)
        for turn in range(19):
            try:
                await agent.turn(f"message {turn}")
            except RuntimeError:
                await agent.turn(None)
        return [
            ([m.text for m in s.values.get("messages", [])], s.next, s.metadata)
            async for s in agent.graph.aget_state_history(at("thread-1"))
        ]

    async with own_saver(tmp_path) as own, library_saver(tmp_path) as library:
        assert await history(own) == await history(library)


async def test_history_of_delta_channels_is_what_a_plain_walk_finds(checkpoints: Checkpoints) -> None:
    saver = checkpoints.saver
    agent = Agent(saver, chatter(20))
    for turn in range(20):
        await agent.turn(f"message {turn}")

    compared = seeded = 0
    async for found in saver.alist(at("thread-1")):
        channels = ["messages", "files", "branch:to:model", "nonexistent"]
        walked = await BaseCheckpointSaver.aget_delta_channel_history(
            saver, config=found.config, channels=channels
        )
        assert await saver.aget_delta_channel_history(config=found.config, channels=channels) == walked
        compared, seeded = compared + 1, seeded + ("seed" in walked["messages"])
    assert compared == 20 * 7
    assert seeded


# What our adapters keep beyond


async def test_what_was_remembered_is_there_after_a_restart(tmp_path: Path) -> None:
    async with sqlite(tmp_path) as first:
        await Agent(first.saver, chatter(1)).turn("message 0")
    async with sqlite(tmp_path) as second:
        assert await Agent(second.saver, []).conversation() == expected_conversation(1)


@pytest.mark.parametrize("keep", [1, 3, 10])
async def test_a_pruned_thread_forgets_nothing(checkpoints: Checkpoints, keep: int) -> None:
    agent = Agent(checkpoints.saver, chatter(40))
    for turn in range(40):
        await agent.turn(f"message {turn}")
        if turn % 4 == 3:
            assert await checkpoints.prune("thread-1", keep=keep) > 0
            assert len([1 async for _ in checkpoints.saver.alist(at("thread-1"))]) == keep
        assert await agent.conversation() == expected_conversation(turn + 1)

    last_question = [m.text for m in agent.model.asked[-1] if m.type != "system"]
    assert last_question == expected_conversation(40)[:-1]


async def test_every_checkpoint_that_stays_has_its_state(checkpoints: Checkpoints) -> None:
    agent = Agent(checkpoints.saver, chatter(20))
    for turn in range(20):
        await agent.turn(f"message {turn}")

    async def states() -> list[Any]:
        return [
            (s.config["configurable"]["checkpoint_id"], s.values, s.next, s.tasks)
            async for s in agent.graph.aget_state_history(at("thread-1"))
        ]

    before = await states()
    assert await checkpoints.prune("thread-1", keep=25) == len(before) - 25
    assert await states() == before[:25]
    assert await checkpoints.prune("thread-1", keep=25) == 0


async def test_a_pruned_thread_stays_small(checkpoints: Checkpoints) -> None:
    agent = Agent(checkpoints.saver, chatter(60))
    rows: list[int] = []
    for turn in range(60):
        await agent.turn(f"message {turn}")
        await checkpoints.prune("thread-1", keep=2)
        database = checkpoints.saver._database
        rows.append(await database.read(lambda c: c.execute("SELECT count(*) FROM checkpoints").get))

    # The messages since the last stored value: LangGraph stores it every 50 updates.
    assert max(rows) <= 2 + 51
    assert await agent.conversation() == expected_conversation(60)


async def test_an_unfinished_turn_survives_pruning(checkpoints: Checkpoints) -> None:
    script = [
        *chatter(3),
        calls(("note", {"text": "last"}), start=9),
        RuntimeError("away"),
        AIMessage(content="end"),
    ]
    agent = Agent(checkpoints.saver, script)
    for turn in range(3):
        await agent.turn(f"message {turn}")
    with pytest.raises(RuntimeError, match="away"):
        await agent.turn("go")
    await checkpoints.prune("thread-1", keep=1)
    await agent.turn(None)

    assert await agent.conversation() == [*expected_conversation(3), "go", "", "noted last", "end"]
    assert agent.notebook.notes == ["note 0", "note 1", "note 2", "last"]


async def test_a_waiting_decision_survives_pruning(checkpoints: Checkpoints) -> None:
    agent = Agent(
        checkpoints.saver,
        [calls(("note", {"text": "risky"})), AIMessage(content="done")],
        interrupt_on={"note": True},
    )
    await agent.turn("go")
    await checkpoints.prune("thread-1", keep=1)
    await agent.turn(Command(resume={"decisions": [{"type": "approve"}]}))

    assert agent.notebook.notes == ["risky"]


async def test_checkpoints_of_sub_agents_go_with_the_turn_they_belong_to(checkpoints: Checkpoints) -> None:
    task = ("task", {"description": "look it up", "subagent_type": "general-purpose"})
    script = [
        calls(task),
        calls(("note", {"text": "sub"}), start=1),
        AIMessage(content="found"),
        AIMessage(content="done"),
    ]
    agent = Agent(checkpoints.saver, [*script, *chatter(2)])
    await agent.turn("go")
    namespaces = {
        f.config["configurable"]["checkpoint_ns"] async for f in checkpoints.saver.alist(at("thread-1"))
    }
    for turn in range(2):
        await agent.turn(f"message {turn}")
    await checkpoints.prune("thread-1", keep=2)

    left = {f.config["configurable"]["checkpoint_ns"] async for f in checkpoints.saver.alist(at("thread-1"))}
    assert len(namespaces) == 2
    assert left == {""}
    assert await agent.conversation() == ["go", "", "found", "done", *expected_conversation(2)]


async def test_a_failed_sub_agent_resumes_after_pruning(checkpoints: Checkpoints) -> None:
    task = ("task", {"description": "look it up", "subagent_type": "general-purpose"})
    script = [calls(task), calls(("note", {"text": "sub"}), start=1), RuntimeError("away")]
    agent = Agent(checkpoints.saver, [*script, AIMessage(content="found"), AIMessage(content="done")])
    with pytest.raises(RuntimeError, match="away"):
        await agent.turn("go")
    await checkpoints.prune("thread-1", keep=1)
    await agent.turn(None)

    assert await agent.conversation() == ["go", "", "found", "done"]
    assert agent.notebook.notes == ["sub"]


async def test_a_copied_thread_goes_its_own_way(checkpoints: Checkpoints) -> None:
    agent = Agent(checkpoints.saver, chatter(4))
    await agent.turn("message 0")
    await checkpoints.prune("thread-1", keep=1)
    await checkpoints.saver.acopy_thread("thread-1", "thread-2")
    await agent.turn("message 1", "thread-2")
    await checkpoints.delete("thread-1")

    assert await agent.conversation("thread-2") == expected_conversation(2)
    assert await agent.conversation("thread-1") == []


async def test_pruning_needs_something_to_keep(checkpoints: Checkpoints) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        await checkpoints.prune("thread-1", keep=0)
    assert await checkpoints.prune("nobody", keep=1) == 0


async def test_the_library_s_own_words_for_pruning_work(checkpoints: Checkpoints) -> None:
    agent = Agent(checkpoints.saver, chatter(3))
    for turn in range(3):
        await agent.turn(f"message {turn}")
    await checkpoints.saver.aprune(["thread-1"])
    assert await agent.conversation() == expected_conversation(3)
    await checkpoints.saver.aprune(["thread-1"], strategy="delete")
    assert await agent.conversation() == []


@pytest.mark.parametrize("size", [100, 10_000, 6_000_000])
async def test_values_of_any_size_come_back(checkpoints: Checkpoints, size: int) -> None:
    text = "".join(chr(32 + number * 7919 % 90) for number in range(size))
    agent = Agent(checkpoints.saver, [AIMessage(content=text), *chatter(1)])
    await agent.turn("go")
    await agent.turn("message 0")

    assert await agent.conversation() == ["go", text, *expected_conversation(1)]
