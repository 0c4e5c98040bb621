"""What becomes of sessions when Daytona is busy, broken, slow or away, or lost their sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web
from contract.daytona_server import KEY, DaytonaServer, daytona_server, problem

from agent_runner.adapters.sandbox.daytona import DaytonaProvider
from agent_runner.adapters.sandbox.reaper import Reaper
from agent_runner.bootstrap.data import DataDirectory
from agent_runner.bootstrap.sandboxes import sandbox_provider
from agent_runner.errors import SandboxRefusedError, SandboxUnavailableError
from agent_runner.ports.sandboxes import SandboxProvider, SandboxSpec
from agent_runner.settings import Settings

HASH = "c0de" * 16


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[DaytonaServer]:
    async with daytona_server(tmp_path / "daytona") as server:
        yield server


@pytest.fixture
async def provider(server: DaytonaServer) -> AsyncIterator[DaytonaProvider]:
    provider = DaytonaProvider(
        api_key=KEY, api_url=server.api_url, owner="us", request_timeout=timedelta(minutes=2)
    )
    yield provider
    server.faults.clear()
    await provider.aclose()


def _installed(directory: Path) -> SandboxProvider:
    """The provider of a data directory, as the program makes it."""
    data = DataDirectory(directory)
    data.prepare()
    return sandbox_provider(Settings(sandbox="daytona"), data)


class TestSessions:
    async def test_one_sandbox_serves_all_executions_of_a_session(
        self, server: DaytonaServer, provider: DaytonaProvider
    ) -> None:
        first = await provider.ensure(SandboxSpec("ses-1"))
        second = await provider.ensure(SandboxSpec("ses-1", previous_id=first.id))

        assert (server.created, second.id, second.warnings) == (1, first.id, ())

    async def test_a_sandbox_that_went_to_sleep_is_started_again_with_its_files(
        self, server: DaytonaServer, provider: DaytonaProvider
    ) -> None:
        first = await provider.ensure(SandboxSpec("ses-1"))
        await first.put([("kept", b"kept")])
        await server.put_to_sleep("ar-ses-1")

        second = await provider.ensure(SandboxSpec("ses-1", previous_id=first.id))

        assert (await second.exec("cat kept")).stdout == b"kept"
        assert (server.created, second.warnings) == (1, ())

    async def test_a_sandbox_that_went_to_sleep_under_a_command_says_so(
        self, server: DaytonaServer, provider: DaytonaProvider
    ) -> None:
        sandbox = await provider.ensure(SandboxSpec("ses-1"))
        seen = asyncio.Event()
        run = asyncio.ensure_future(sandbox.exec("echo begun; sleep 600", on_output=lambda _: seen.set()))
        await asyncio.wait_for(seen.wait(), 120)
        await server.put_to_sleep("ar-ses-1")

        with pytest.raises(SandboxUnavailableError):
            await asyncio.wait_for(run, 120)
        with pytest.raises(SandboxUnavailableError):
            await sandbox.exec("true")

    async def test_a_lost_sandbox_is_replaced_with_a_warning(
        self, server: DaytonaServer, provider: DaytonaProvider
    ) -> None:
        first = await provider.ensure(SandboxSpec("ses-1"))
        server.lose("ar-ses-1")

        second = await provider.ensure(SandboxSpec("ses-1", previous_id=first.id))

        assert second.id != first.id
        assert any("lost" in warning for warning in second.warnings)

    async def test_only_our_own_are_listed_over_all_pages(
        self, server: DaytonaServer, provider: DaytonaProvider
    ) -> None:
        other = DaytonaProvider(api_key=KEY, api_url=server.api_url, owner="them")
        names = [f"ses-{number}" for number in range(5)]
        await asyncio.gather(*(provider.ensure(SandboxSpec(name)) for name in names))
        await other.ensure(SandboxSpec("ses-theirs"))

        assert await provider.sessions() == names
        assert await other.sessions() == ["ses-theirs"]
        await other.aclose()

    async def test_the_reaper_of_one_installation_leaves_alone_what_another_made(
        self, server: DaytonaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DAYTONA_API_KEY", KEY)
        monkeypatch.setenv("DAYTONA_API_URL", server.api_url)
        ours, ours_again, theirs = (_installed(tmp_path / name) for name in ("ours", "ours", "theirs"))
        await ours.ensure(SandboxSpec("ses-ours"))
        await theirs.ensure(SandboxSpec("ses-theirs"))

        async def live() -> list[str]:
            return []

        assert await Reaper(ours_again, live).run_once() == ["ses-ours"]
        assert await theirs.sessions() == ["ses-theirs"]
        for provider in (ours, ours_again, theirs):
            await provider.aclose()

    async def test_a_skill_altered_by_an_agent_with_sudo_is_put_right(
        self, provider: DaytonaProvider, tmp_path: Path
    ) -> None:
        skill = tmp_path / "skill"
        skill.mkdir()
        (skill / "SKILL.md").write_text("# Good\n")
        spec = SandboxSpec("ses-1", skills={HASH: skill})
        sandbox = await provider.ensure(spec)
        assert (await provider.ensure(spec)).warnings == ()
        place = f"/bin/skills/{HASH}"
        altered = await sandbox.exec(
            f"chmod -R u+w {place}; echo evil > {place}/SKILL.md; cat {place}/SKILL.md"
        )
        assert altered.stdout == b"evil\n"

        again = await provider.ensure(spec)

        assert any("altered" in warning for warning in again.warnings)
        assert (await again.exec(f"cat {place}/SKILL.md")).stdout == b"# Good\n"


class TestFaults:
    async def test_too_many_requests_are_waited_out(
        self, server: DaytonaServer, provider: DaytonaProvider
    ) -> None:
        left = 3

        def busy(request: web.Request) -> web.Response | None:
            nonlocal left
            left -= 1
            return problem(request, 429, "slow down", {"Retry-After": "0"}) if left >= 0 else None

        server.faults.append(busy)
        sandbox = await provider.ensure(SandboxSpec("ses-1"))

        assert (await sandbox.exec("echo fine")).stdout == b"fine\n"

    async def test_a_limit_for_an_hour_is_told_at_once(
        self, server: DaytonaServer, provider: DaytonaProvider
    ) -> None:
        server.faults.append(lambda request: problem(request, 429, "come later", {"Retry-After": "3600"}))

        async with asyncio.timeout(300):
            with pytest.raises(SandboxUnavailableError, match="come later"):
                await provider.ensure(SandboxSpec("ses-1"))

    async def test_an_error_of_the_server_is_told_after_some_attempts(
        self, server: DaytonaServer, provider: DaytonaProvider
    ) -> None:
        server.faults.append(lambda request: problem(request, 500, "out of order"))

        with pytest.raises(SandboxUnavailableError, match="out of order"):
            await provider.ensure(SandboxSpec("ses-1"))

        assert 1 < len(server.requests) < 30
        assert "out of order" in await provider.check()

    async def test_a_server_that_never_answers_is_given_up(self, server: DaytonaServer) -> None:
        provider = DaytonaProvider(
            api_key=KEY, api_url=server.api_url, request_timeout=timedelta(seconds=0.3)
        )
        server.faults.append(lambda _: 3600.0)

        with pytest.raises(SandboxUnavailableError, match="in time"):
            await asyncio.wait_for(provider.ensure(SandboxSpec("ses-1")), 120)

        await provider.aclose()

    async def test_a_slow_server_is_waited_for(
        self, server: DaytonaServer, provider: DaytonaProvider
    ) -> None:
        server.faults.append(lambda _: 0.3)
        sandbox = await provider.ensure(SandboxSpec("ses-1"))

        assert (await sandbox.exec("echo fine")).stdout == b"fine\n"

    async def test_nobody_there_is_told(self) -> None:
        provider = DaytonaProvider(
            api_key=KEY, api_url="http://127.0.0.1:9/api", request_timeout=timedelta(seconds=2)
        )

        with pytest.raises(SandboxUnavailableError):
            await provider.ensure(SandboxSpec("ses-1"))

        await provider.aclose()

    async def test_a_wrong_key_is_refused_with_the_variable_to_check(self, server: DaytonaServer) -> None:
        provider = DaytonaProvider(api_key="wrong", api_url=server.api_url)

        with pytest.raises(SandboxRefusedError, match="DAYTONA_API_KEY"):
            await provider.ensure(SandboxSpec("ses-1"))

        assert "DAYTONA_API_KEY" in await provider.check()
        await provider.aclose()

    async def test_no_key_is_told_without_asking_anybody(self) -> None:
        assert "DAYTONA_API_KEY" in await DaytonaProvider(api_key="").check()

    async def test_a_create_whose_answer_was_lost_finds_the_one_it_made(
        self, server: DaytonaServer, provider: DaytonaProvider
    ) -> None:
        other = DaytonaProvider(api_key=KEY, api_url=server.api_url, owner="us")

        found = await asyncio.gather(
            provider.ensure(SandboxSpec("ses-1")), other.ensure(SandboxSpec("ses-1"))
        )

        assert found[0].id == found[1].id
        assert server.created == 1
        await other.aclose()
