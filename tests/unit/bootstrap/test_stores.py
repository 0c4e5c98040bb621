from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent_runner.bootstrap import stores
from agent_runner.bootstrap.data import DataDirectory
from agent_runner.bootstrap.keys import provider_keys
from agent_runner.errors import SettingsError, UnavailableError
from agent_runner.ports.stores import ResourceKey, StoredResource
from agent_runner.settings import Settings

NOBODY = "127.0.0.1:9"
"""The discard port, where nothing listens."""
KEYS = "k1:" + base64.b64encode(bytes(32)).decode()


@pytest.fixture
def shared(tmp_path: Path) -> Settings:
    """All a shared database wants beside it."""
    return Settings(
        data_dir=tmp_path,
        database=f"mongodb://{NOBODY}",
        artifact_store="s3://bucket",
        encryption_keys=KEYS,
    )


async def test_without_settings_things_are_kept_in_the_data_directory(tmp_path: Path) -> None:
    data, resource = DataDirectory(tmp_path), StoredResource(ResourceKey("agent", "a"), "", "", b"body")
    async with stores.opened_stores(Settings(data_dir=tmp_path), data) as opened:
        await opened.resources.put(resource, expected=0)

    assert (opened.kind, opened.shared) == ("sqlite", False)
    assert data.database.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"artifact_store": None}, "Set AGENT_RUNNER_ARTIFACT_STORE"),
        ({"encryption_keys": None}, "Set AGENT_RUNNER_ENCRYPTION_KEYS"),
        ({"database": None, "announcements": "redis://h"}, "Set AGENT_RUNNER_DATABASE to a MongoDB too"),
    ],
)
async def test_what_several_control_planes_cannot_share_is_refused(
    shared: Settings, change: dict[str, str | None], says: str
) -> None:
    with pytest.raises(SettingsError, match=says):
        async with stores.opened_stores(replace(shared, **change), DataDirectory(shared.data_dir)):  # type: ignore[arg-type]
            pass


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("pymongo", r"AGENT_RUNNER_DATABASE needs .* pip install 'agent-runner-platform\[mongodb\]'"),
        ("redis", r"AGENT_RUNNER_ANNOUNCEMENTS needs .* pip install 'agent-runner-platform\[redis\]'"),
    ],
)
async def test_a_missing_library_is_named_with_its_extra(
    shared: Settings, monkeypatch: pytest.MonkeyPatch, module: str, says: str
) -> None:
    def found(name: str) -> ModuleSpec | None:
        return None if name == module else ModuleSpec(name, None)

    monkeypatch.setattr(stores, "find_spec", found)
    settings = replace(shared, announcements="redis://h" if module == "redis" else None)
    with pytest.raises(SettingsError, match=says):
        async with stores.opened_stores(settings, DataDirectory(shared.data_dir)):
            pass


async def test_a_server_that_comes_up_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    @asynccontextmanager
    async def opening() -> AsyncIterator[str]:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise UnavailableError("It is away.")
        yield "open"

    monkeypatch.setattr(stores, "_AGAIN", 0.0)
    with capture_logs() as logs:
        async with AsyncExitStack() as stack:
            assert await stores._reached(stores.DATABASE, opening, stack) == "open"
    assert tries == 3
    assert [entry["event"] for entry in logs] == ["waiting for a server"]


async def test_a_server_that_stays_away_is_told_with_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_TO_COME", 0.0)

    @asynccontextmanager
    async def opening() -> AsyncIterator[str]:
        raise UnavailableError("It is away.")
        yield ""

    with pytest.raises(UnavailableError, match=r"^AGENT_RUNNER_DATABASE: It is away"):
        async with AsyncExitStack() as stack:
            await stores._reached(stores.DATABASE, opening, stack)


async def test_announcements_that_cannot_be_used_are_a_problem_of_their_setting(shared: Settings) -> None:
    pytest.importorskip("redis")
    async with asyncio.timeout(120):
        problem = await stores.announcements_problem(replace(shared, announcements=f"redis://{NOBODY}"))
    assert problem.startswith("AGENT_RUNNER_ANNOUNCEMENTS: Redis cannot be used right now")
    assert problem.endswith(". Try again.")
    assert not problem.endswith(".. Try again.")


async def test_what_the_database_lacks_is_no_problem_of_announcements(shared: Settings) -> None:
    pytest.importorskip("redis")
    settings = replace(shared, artifact_store=None, announcements=f"redis://{NOBODY}")
    async with asyncio.timeout(120):
        database, announcements = (
            await stores.database_problem(settings),
            await stores.announcements_problem(settings),
        )
    assert "AGENT_RUNNER_ARTIFACT_STORE" in database
    assert "AGENT_RUNNER_ARTIFACT_STORE" not in announcements


def test_passwords_of_addresses_are_kept_out_of_logs(shared: Settings) -> None:
    settings = replace(
        shared,
        database="mongodb://me:se%40cret-of-db@one:1,two:2/name",
        announcements="redis://:secret-of-redis@h/0",
    )
    known = provider_keys(settings, {})

    assert {"se%40cret-of-db", "se@cret-of-db", "secret-of-redis"} <= set(known)
    assert "secret-of" not in repr(settings)
