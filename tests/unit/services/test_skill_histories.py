"""Whatever is pushed and rolled back, versions mean what the plain list of all pushes says."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.services.test_skills import Skills, archive, hash_of

from agent_runner.adapters.store.memory import MemoryResourceStore
from agent_runner.errors import NotFoundError

ARCHIVES = [archive(number) for number in range(4)]
TAGS = ["", "stable", "next", "latest"]
PUSHES = st.tuples(st.just("push"), st.integers(0, 3), st.sampled_from(TAGS))
ROLLBACKS = st.tuples(st.just("rollback"), st.integers(0, 3), st.sampled_from(TAGS))


@dataclass
class Model:
    """The history, oldest first, as (number of the archive, tag)."""

    entries: list[tuple[int, str]] = field(default_factory=list)

    def push(self, number: int, tag: str) -> bool:
        """Whether the bytes are new."""
        new = all(number != known for known, _ in self.entries)
        if not (self.entries and self.entries[-1][0] == number and tag in ("", self.entries[-1][1])):
            self.entries.append((number, tag))
        return new

    def newest(self, number: int) -> tuple[int, str] | None:
        return next((entry for entry in reversed(self.entries) if entry[0] == number), None)

    def tagged(self, tag: str) -> int | None:
        return next((number for number, known in reversed(self.entries) if known == tag), None)


async def check_meanings(skills: Skills, model: Model) -> None:
    assert [(hash, tag) for hash, tag in reversed(await skills.history())] == [
        (hash_of(ARCHIVES[number]), tag) for number, tag in model.entries
    ]
    wanted = {tag: model.tagged(tag) for tag in ("stable", "next")}
    wanted |= {"": model.entries[-1][0], "latest": model.entries[-1][0]}
    wanted |= {hash_of(ARCHIVES[n]): n if model.newest(n) else None for n in range(4)}
    for version, number in wanted.items():
        try:
            found = (await skills.find(version)).status.version_hash
        except NotFoundError:
            assert number is None, version
        else:
            assert number is not None and found == hash_of(ARCHIVES[number]), version


async def play(steps: list[tuple[str, int, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        skills, model = Skills(MemoryResourceStore(), Path(folder)), Model()
        for what, number, tag in steps:
            if what == "push":
                assert (await skills.push(ARCHIVES[number], tag)).new_version is model.push(number, tag)
            elif model.entries:
                version, before = hash_of(ARCHIVES[number]), model.newest(number)
                try:
                    await skills.service.rollback("acme", "pdf-tools", version, tag=tag)
                except NotFoundError:
                    assert before is None
                else:
                    assert before is not None
                    model.push(number, tag or before[1])
            if model.entries:
                await check_meanings(skills, model)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(PUSHES | ROLLBACKS, min_size=1, max_size=10))
def test_versions_mean_what_the_list_of_all_pushes_says(steps: list[tuple[str, int, str]]) -> None:
    asyncio.run(play(steps))
