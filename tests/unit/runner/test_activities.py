"""Activities alone, outside a worker."""

from __future__ import annotations

from pathlib import Path

from temporalio.testing import ActivityEnvironment

from agent_runner.adapters.sandbox.local import LocalProvider
from agent_runner.ports.sandboxes import SandboxSpec
from agent_runner.runner.activities.sandboxes import SandboxActivities
from agent_runner.runner.activities.threads import ensure_thread


async def test_a_thread_is_the_sessions_or_one_of_its_own() -> None:
    run = ActivityEnvironment().run
    assert await run(ensure_thread, "ses-1", "agt-1") == "thread-ses-1"
    first, second = await run(ensure_thread, "", "agt-1"), await run(ensure_thread, "", "agt-1")
    assert first.startswith("ephemeral-agt-1-") and first != second


async def test_a_sandbox_is_removed_by_its_id_or_its_sessions(tmp_path: Path) -> None:
    provider = LocalProvider(tmp_path)
    cleanup = SandboxActivities(provider).cleanup
    first = await provider.ensure(SandboxSpec("ses-1"))
    await provider.ensure(SandboxSpec("ses-2"))
    await ActivityEnvironment().run(cleanup, first.id)
    assert list(await provider.sessions()) == ["ses-2"]
    await ActivityEnvironment().run(cleanup, "ses-2")
    await ActivityEnvironment().run(cleanup, "ses-2")
    assert not await provider.sessions()
    await provider.aclose()
