"""Leases, the cap, stopping what is idle, and the reaper, over real local sandboxes; and chaos."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from agent_runner.adapters.sandbox.leases import Leases
from agent_runner.adapters.sandbox.lifecycle import ManagedProvider
from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.adapters.sandbox.reaper import Reaper
from agent_runner.errors import NotFoundError, SandboxUnavailableError, UnavailableError
from agent_runner.ports.sandboxes import Sandbox, SandboxSpec


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalProvider]:
    provider = LocalProvider(tmp_path / "sandboxes")
    yield provider
    for session_id in await provider.sessions():
        await provider.delete(session_id)
    await provider.aclose()


@pytest.fixture
async def leases(tmp_path: Path) -> AsyncIterator[Leases]:
    leases = Leases(tmp_path / "leases.sqlite")
    yield leases
    await leases.aclose()


class TestCap:
    async def test_one_more_waits_is_told_and_goes_on_when_another_is_done(
        self, local: LocalProvider, leases: Leases
    ) -> None:
        provider = ManagedProvider(local, leases, owner="worker", max_running=2)
        sandboxes = [await provider.ensure(SandboxSpec(f"ses-{n}")) for n in range(2)]
        begun = [asyncio.Event(), asyncio.Event()]
        busy = [
            asyncio.ensure_future(hold(sandbox, event))
            for sandbox, event in zip(sandboxes, begun, strict=True)
        ]
        await asyncio.gather(*(asyncio.wait_for(event.wait(), 120) for event in begun))
        told = asyncio.Event()
        sentences: list[str] = []

        def tell(sentence: str) -> None:
            sentences.append(sentence)
            told.set()

        third = asyncio.ensure_future(provider.ensure(SandboxSpec("ses-2", on_waiting=tell)))
        await asyncio.wait_for(told.wait(), 120)
        assert not third.done()

        await local.workspace("ses-0").write("go", content(b""))
        sandbox = await asyncio.wait_for(third, 120)

        assert len(sentences) == 1
        assert "2 run" in sentences[0]
        assert (await sandbox.exec("echo third")).stdout == b"third\n"
        assert set(provider.running) == {"ses-1", "ses-2"}
        for task in busy:
            task.cancel()
        await asyncio.wait(busy)
        await provider.aclose()

    async def test_a_sandbox_that_had_to_make_room_comes_back_with_its_files(
        self, local: LocalProvider, leases: Leases
    ) -> None:
        provider = ManagedProvider(local, leases, owner="worker", max_running=1)
        first = await provider.ensure(SandboxSpec("ses-1", {"A": "1"}))
        await first.exec("echo kept > kept")
        second = await provider.ensure(SandboxSpec("ses-2"))
        assert list(provider.running) == ["ses-2"]

        assert (await first.exec("cat kept; echo $A")).stdout == b"kept\n1\n"
        assert list(provider.running) == ["ses-1"]
        assert (await second.exec("echo two")).stdout == b"two\n"
        await provider.aclose()

    async def test_many_sessions_get_through_a_small_cap(self, local: LocalProvider, leases: Leases) -> None:
        provider = ManagedProvider(local, leases, owner="worker", max_running=3)

        async def session(number: int) -> bytes:
            sandbox = await provider.ensure(SandboxSpec(f"ses-{number}"))
            await sandbox.exec(f"echo {number} > n")
            assert len(provider.running) <= 3
            return (await sandbox.exec("cat n")).stdout

        found = await asyncio.wait_for(asyncio.gather(*(session(n) for n in range(12))), 120)

        assert found == [f"{n}\n".encode() for n in range(12)]
        await provider.aclose()

    async def test_a_start_that_fails_leaves_its_place_to_others(
        self, local: LocalProvider, leases: Leases, tmp_path: Path
    ) -> None:
        provider = ManagedProvider(local, leases, owner="worker", max_running=1)
        with pytest.raises(FileNotFoundError):
            await provider.ensure(SandboxSpec("ses-1", skills={"a" * 64: tmp_path / "nowhere"}))

        sandbox = await asyncio.wait_for(provider.ensure(SandboxSpec("ses-2")), 120)

        assert (await sandbox.exec("echo ok")).stdout == b"ok\n"
        await provider.aclose()


class TestIdle:
    async def test_what_is_idle_is_stopped_and_what_is_busy_is_not(
        self, local: LocalProvider, leases: Leases
    ) -> None:
        provider = ManagedProvider(local, leases, owner="worker", idle_after=timedelta(seconds=0.2))
        idle = await provider.ensure(SandboxSpec("ses-idle"))
        busy = await provider.ensure(SandboxSpec("ses-busy"))
        begun = asyncio.Event()
        working = asyncio.ensure_future(hold(busy, begun))
        await asyncio.wait_for(begun.wait(), 120)
        async with asyncio.timeout(120):
            while "ses-idle" in provider.running:  # noqa: ASYNC110 (nothing tells of it)
                await asyncio.sleep(0.05)

        assert "ses-busy" in provider.running
        await provider.workspace("ses-busy").write("go", content(b""))
        await working
        assert (await idle.exec("echo again")).stdout == b"again\n"
        await provider.aclose()

    async def test_looking_at_files_is_use_and_ends_as_such(
        self, local: LocalProvider, leases: Leases
    ) -> None:
        provider = ManagedProvider(local, leases, owner="worker", idle_after=timedelta(0))
        sandbox = await provider.ensure(SandboxSpec("ses-1"))
        await sandbox.exec("echo here > file")
        await provider.stop("ses-1")
        with pytest.raises(NotFoundError):
            provider.workspace("ses-none")

        workspace = provider.workspace("ses-1")
        async for chunk in workspace.read("file"):
            assert chunk == b"here\n"
            assert list(provider.running) == ["ses-1"]
            assert await provider.stop_idle() == []

        assert await workspace.write("new", content(b"more")) == 4
        assert [entry.path for entry in await workspace.list()] == ["/workspace/file", "/workspace/new"]
        await provider.stop_idle()
        assert not provider.running
        assert (await sandbox.exec("cat new")).stdout == b"more"
        await provider.aclose()

    async def test_a_command_under_which_its_sandbox_is_deleted_says_so(
        self, local: LocalProvider, leases: Leases
    ) -> None:
        provider = ManagedProvider(local, leases, owner="worker")
        sandbox = await provider.ensure(SandboxSpec("ses-1"))
        begun = asyncio.Event()
        run = asyncio.ensure_future(hold(sandbox, begun))
        await asyncio.wait_for(begun.wait(), 120)

        await provider.delete("ses-1")

        with pytest.raises(SandboxUnavailableError):
            await asyncio.wait_for(run, 120)
        assert await provider.sessions() == []
        await provider.aclose()


class TestReaper:
    async def test_it_removes_what_no_session_owns_and_nothing_else(
        self, local: LocalProvider, leases: Leases
    ) -> None:
        for name in ("ses-live", "ses-dead", "ses-leased"):
            await local.ensure(SandboxSpec(name))
        await leases.touch("local", "ses-leased", "other-worker", timedelta(minutes=1))
        await leases.touch("local", "ses-dead", "dead-worker", timedelta(seconds=-1))

        async def live() -> list[str]:
            return ["ses-live"]

        removed = await Reaper(local, live, leases).run_once()

        assert removed == ["ses-dead"]
        assert await local.sessions() == ["ses-leased", "ses-live"]

    async def test_while_the_sessions_cannot_be_listed_nothing_is_removed(self, local: LocalProvider) -> None:
        await local.ensure(SandboxSpec("ses-1"))
        asked = asyncio.Event()

        async def live() -> list[str]:
            asked.set()
            raise UnavailableError("The control plane is away.")

        running = asyncio.ensure_future(Reaper(local, live).run())
        await asyncio.wait_for(asked.wait(), 120)
        running.cancel()

        assert await local.sessions() == ["ses-1"]

    async def test_leases_are_seen_by_every_worker_and_end(self, leases: Leases, tmp_path: Path) -> None:
        other = Leases(tmp_path / "leases.sqlite")
        await leases.touch("local", "ses-1", "one", timedelta(minutes=1))
        await other.touch("local", "ses-1", "two", timedelta(seconds=-1))

        (lease,) = await leases.all("local")

        assert (lease.owner, lease.expired()) == ("two", True)
        await other.drop("local", "ses-1")
        assert await leases.all("local") == []
        await other.aclose()


WORKER = """
import asyncio, random, sys
from datetime import timedelta
from pathlib import Path
from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.ports.sandboxes import SandboxSpec

root, skill, marker, *sessions = sys.argv[1:]

async def session(provider, name):
    sandbox = await provider.ensure(SandboxSpec(name, skills={"a" * 64: Path(skill)}))
    print("begun", name, flush=True)
    await sandbox.put([("file", b"x" * 1000)])
    await sandbox.exec(f"setsid sleep {marker} & mkdir -p deep/er; chmod 0 deep; sleep {random.random() / 4}")
    await provider.delete(name)
    print("ended", name, flush=True)

async def main():
    provider = LocalProvider(Path(root))
    await asyncio.gather(*(session(provider, name) for name in sessions))
    await provider.aclose()

asyncio.run(main())
"""


class TestChaos:
    async def test_killed_workers_leave_nothing_that_is_not_removed(self, tmp_path: Path) -> None:
        """100 sessions on 10 workers; two workers are killed at random points."""
        root, marker = tmp_path / "sandboxes", f"6{random.randrange(10**9):09d}"
        skill = tmp_path / "skill"
        skill.mkdir()
        (skill / "SKILL.md").write_text("# x\n")
        seed = random.randrange(10**6)
        chance = random.Random(seed)
        names = [f"ses-{n:03d}" for n in range(100)]
        workers = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", textwrap.dedent(WORKER),
                str(root), str(skill), marker, *names[n * 10 : n * 10 + 10],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=asyncio.subprocess.PIPE,
            )
            for n in range(10)
        ]  # fmt: skip
        killed = chance.sample(range(10), 2)
        after = {index: chance.randrange(1, 15) for index in killed}

        async def follow(index: int) -> int:
            reader, lines = workers[index].stdout, 0
            assert reader is not None
            while await reader.readline():
                lines += 1
                if lines == after.get(index):
                    workers[index].send_signal(signal.SIGKILL)
            return await workers[index].wait()

        codes = await asyncio.wait_for(asyncio.gather(*(follow(n) for n in range(10))), 500)
        provider = LocalProvider(root)

        async def live() -> list[str]:
            return []

        removed = await Reaper(provider, live).run_once()
        age(root)
        await provider.sweep()

        assert {codes[index] for index in killed} == {-9}, f"seed {seed}"
        assert [code for index, code in enumerate(codes) if index not in killed] == [0] * 8
        assert await provider.sessions() == []
        assert left_in(root) == []
        assert not [p for p in psutil.process_iter(["cmdline"]) if marker in (p.info["cmdline"] or [])]
        print(json.dumps({"seed": seed, "killed": killed, "reaped": len(removed)}))
        await provider.aclose()


def age(root: Path) -> None:
    """As if a minute had passed, for what is swept by its age."""
    for path in (*(root / "sessions").glob(".probe-*"), *(root / "uids").glob("*")):
        os.utime(path, (time.time() - 60,) * 2, follow_symlinks=False)


def left_in(root: Path) -> list[str]:
    return [str(path) for place in ("sessions", "uids") for path in (root / place).glob("*")] + [
        str(path) for path in (root / "sessions").glob(".*")
    ]


async def hold(sandbox: Sandbox, begun: asyncio.Event) -> None:
    """Keep a sandbox busy until there is a file `go` in it."""
    await sandbox.exec("echo begun; until [ -e go ]; do sleep 0.05; done", on_output=lambda _: begun.set())


async def content(data: bytes) -> AsyncIterator[bytes]:
    yield data
