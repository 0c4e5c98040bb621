"""Containers that are killed or lost, images that do not fit, and mode `auto` over both kinds."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from contract.container_engine import IMAGE, engine_url
from contract.sandbox_kinds import KnownEngineProvider

from agent_runner.adapters.sandbox.auto import AutoProvider
from agent_runner.adapters.sandbox.docker import DockerProvider
from agent_runner.adapters.sandbox.docker.engine import Engine
from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.adapters.sandbox.reaper import Reaper
from agent_runner.errors import SandboxRefusedError, SandboxUnavailableError
from agent_runner.ports.sandboxes import SandboxSpec


@pytest.fixture
async def provider() -> AsyncIterator[DockerProvider]:
    owner = secrets.token_hex(4)
    provider = KnownEngineProvider(
        image=IMAGE, url=engine_url(), auto_pull=False, extra_ro_paths=["/usr"], owner=owner
    )
    yield provider
    for session_id in await provider.sessions():
        await provider.delete(session_id)
    await provider.aclose()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine(engine_url())
    yield engine
    await engine.aclose()


@pytest.fixture
def session_id() -> str:
    return f"ses-{secrets.token_hex(6)}"


async def test_a_container_killed_under_a_command_is_told_and_started_again(
    provider: DockerProvider, engine: Engine, session_id: str
) -> None:
    sandbox = await provider.ensure(SandboxSpec(session_id))
    begun = asyncio.Event()
    run = asyncio.ensure_future(
        sandbox.exec("echo kept > kept; echo begun; sleep 600", on_output=lambda _: begun.set())
    )
    await asyncio.wait_for(begun.wait(), 120)
    await engine.request("POST", f"containers/ar-{session_id}/kill", params={"signal": "KILL"})

    with pytest.raises(SandboxUnavailableError):
        await asyncio.wait_for(run, 120)
    with pytest.raises(SandboxUnavailableError):
        await sandbox.put([("x", b"")])

    again = await provider.ensure(SandboxSpec(session_id, previous_id=sandbox.id))
    assert (await again.exec("cat kept")).stdout == b"kept\n"


async def test_a_container_removed_by_somebody_is_replaced_and_keeps_the_files(
    provider: DockerProvider, engine: Engine, session_id: str
) -> None:
    sandbox = await provider.ensure(SandboxSpec(session_id))
    await sandbox.put([("kept", b"kept")])
    await engine.request("DELETE", f"containers/ar-{session_id}", params={"force": "true"})

    # People get at the files even so, and the next execution too.
    content = b"".join([chunk async for chunk in provider.workspace(session_id).read("kept")])
    assert content == b"kept"
    await engine.request("DELETE", f"containers/ar-{session_id}", params={"force": "true"})
    again = await provider.ensure(SandboxSpec(session_id, previous_id=sandbox.id))

    assert any("replaced" in warning for warning in again.warnings)
    assert (await again.exec("cat kept")).stdout == b"kept"


async def test_the_reaper_removes_containers_and_volumes_of_sessions_which_are_no_more(
    provider: DockerProvider, engine: Engine, session_id: str
) -> None:
    await provider.ensure(SandboxSpec(session_id))

    async def live() -> list[str]:
        return []

    assert await Reaper(provider, live).run_once() == [session_id]

    containers = await engine.request("GET", "containers/json", params={"all": "true"})
    volumes = (await engine.request("GET", "volumes")).get("Volumes") or []
    assert not [found for found in containers if any(session_id in name for name in found["Names"])]
    assert not [found for found in volumes if session_id in found["Name"]]


async def test_what_cannot_work_is_told_in_words(session_id: str) -> None:
    missing = DockerProvider(image="no/such:image", url=engine_url(), auto_pull=False)
    nobody = DockerProvider(url="unix:///nonexistent/socket")

    assert "no/such:image" in await missing.check()
    with pytest.raises(SandboxRefusedError, match="Pull it"):
        await missing.ensure(SandboxSpec(session_id))
    assert await nobody.check() != ""
    with pytest.raises(SandboxUnavailableError):
        await nobody.ensure(SandboxSpec(session_id))
    await missing.aclose()
    await nobody.aclose()


class TestAuto:
    @pytest.fixture
    async def auto(self, tmp_path: Path) -> AsyncIterator[AutoProvider]:
        local = LocalProvider(tmp_path / "sandboxes")
        isolated = KnownEngineProvider(
            image=IMAGE,
            url=engine_url(),
            auto_pull=False,
            extra_ro_paths=["/usr"],
            owner=secrets.token_hex(4),
            shared=local.directories,
        )
        provider = AutoProvider(local, isolated)
        yield provider
        for session_id in await provider.sessions():
            await provider.delete(session_id)
        await provider.aclose()

    async def test_risky_commands_run_in_the_container_over_the_same_files(
        self, auto: AutoProvider, session_id: str, tmp_path: Path
    ) -> None:
        skill = tmp_path / "skill"
        skill.mkdir()
        (skill / "SKILL.md").write_text("# Hi\n")
        sandbox = await auto.ensure(SandboxSpec(session_id, {"A": "1"}, {"a" * 64: skill}))
        where = "grep -q bwrap /proc/1/cmdline && echo local || echo container"

        simple = await sandbox.exec(f"echo one > file; {where}")
        # `make install` is risky by its name alone; there is none, so what it does is nothing.
        risky = await sandbox.exec(
            f"{where}; cat file /bin/skills/{'a' * 64}/SKILL.md; echo $A; echo two > other; "
            "make install 2>/dev/null; true"
        )
        after = await sandbox.exec("cat other; echo three >> other; stat -c %u file other")

        assert simple.stdout == b"local\n"
        assert risky.stdout == b"container\none\n# Hi\n1\n"
        assert after.stdout == b"two\n1000\n1000\n"
        assert await sandbox.get(["other"]) == [(b"two\nthree\n", None)]
        assert await auto.sessions() == [session_id]
        assert await auto.check() == ""

        await auto.delete(session_id)
        assert await auto.sessions() == []

    async def test_the_second_execution_finds_its_sandbox(self, auto: AutoProvider, session_id: str) -> None:
        first = await auto.ensure(SandboxSpec(session_id))
        again = await auto.ensure(SandboxSpec(session_id, previous_id=first.id))
        assert (again.id, again.warnings) == (first.id, ())

        await auto.delete(session_id)
        lost = await auto.ensure(SandboxSpec(session_id, previous_id=first.id))
        assert any("lost" in warning for warning in lost.warnings)
