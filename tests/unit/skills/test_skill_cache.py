"""The runner's cache: downloads once, verifies, shares, makes room."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from hostile_archives import GOOD, Item, noise, skill

from agent_runner.adapters.skills.cache import SkillCache
from agent_runner.errors import NotFoundError, UnavailableError
from ai.stigmer.agentic.skill.v1.api_pb2 import Skill
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference


class Reader:
    """Artifacts in a dictionary; tells how often each was asked for."""

    def __init__(self, *archives: bytes) -> None:
        self.archives = {hash_of(data): data for data in archives}
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        self.gate: asyncio.Event | None = None
        self.four = asyncio.Event()
        self.away = False

    async def skill(self, reference: ApiResourceReference) -> Skill:
        raise NotImplementedError

    async def artifact(self, key: str) -> AsyncIterator[bytes]:
        self.asked.append(key)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        if self.at_once == 4:
            self.four.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.away:
                raise UnavailableError("away")
            if key not in self.archives:
                raise NotFoundError("artifact", key)
            data = self.archives[key]
            for start in range(0, len(data), 1000):
                await asyncio.sleep(0)
                yield data[start : start + 1000]
        finally:
            self.at_once -= 1


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def version(data: bytes | str) -> Skill:
    made = Skill()
    made.status.version_hash = data if isinstance(data, str) else hash_of(data)
    made.status.artifact_storage_key = made.status.version_hash
    return made


ONE = skill(Item("run.sh", b"echo one"), Item("data/n.bin", noise(20_000)))
TWO = skill(Item("run.sh", b"echo two"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_files_are_brought_once_and_used_again(tmp_path: Path) -> None:
    reader = Reader(ONE, TWO)
    cache = SkillCache(tmp_path / "skills", reader)
    for _ in range(3):
        async with cache.use([version(ONE), version(TWO), version(ONE)]) as found:
            assert set(found.paths) == {hash_of(ONE), hash_of(TWO)}
            assert not found.problems
            assert (found.paths[hash_of(ONE)] / "run.sh").read_bytes() == b"echo one"
            assert (found.paths[hash_of(ONE)] / "SKILL.md").read_bytes() == GOOD
            assert (found.paths[hash_of(TWO)] / "run.sh").stat().st_mode & 0o777 == 0o755
    assert sorted(reader.asked) == sorted([hash_of(ONE), hash_of(TWO)])
    assert names(tmp_path / "skills" / "scratch") == []


async def test_versions_are_downloaded_side_by_side_but_not_all_at_once(tmp_path: Path) -> None:
    archives = [skill(Item("n", str(i).encode())) for i in range(12)]
    reader = Reader(*archives)
    reader.gate = asyncio.Event()
    cache = SkillCache(tmp_path, reader, parallel=4)

    async def use() -> int:
        async with cache.use([version(data) for data in archives]) as found:
            return len(found.paths)

    running = asyncio.create_task(use())
    await reader.four.wait()
    reader.gate.set()
    assert await running == 12
    assert reader.most_at_once == 4


async def test_many_who_want_one_version_at_once_download_it_once(tmp_path: Path) -> None:
    reader = Reader(ONE)
    caches = [SkillCache(tmp_path, reader) for _ in range(3)]

    async def use(cache: SkillCache) -> Path:
        async with cache.use([version(ONE)]) as found:
            return found.paths[hash_of(ONE)]

    assert len(set(await asyncio.gather(*(use(caches[i % 3]) for i in range(20))))) == 1
    assert reader.asked == [hash_of(ONE)]


async def test_many_turns_cost_one_descriptor_per_version(tmp_path: Path) -> None:
    cache = SkillCache(tmp_path, Reader(ONE, TWO))
    async with AsyncExitStack() as turns:
        for _ in range(100):
            await turns.enter_async_context(cache.use([version(ONE), version(TWO)]))
        assert len(opened_below(tmp_path)) == 2
    assert opened_below(tmp_path) == []


def opened_below(folder: Path) -> list[str]:
    """What this process has open there; other tests' threads may open and close what they like."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(str(link.readlink()))
    return [path for path in found if path.startswith(f"{folder}/")]


async def test_a_missing_artifact_is_a_problem_and_the_others_go_on(tmp_path: Path) -> None:
    lost = "f" * 64
    cache = SkillCache(tmp_path / "cache", Reader(ONE))
    async with cache.use([version(ONE), version(lost), version("../../etc")]) as found:
        assert set(found.paths) == {hash_of(ONE)}
        assert found.problems[lost] == "The artifact is not in its store."
        assert "no version" in found.problems["../../etc"]
    assert names(tmp_path) == ["cache"]


async def test_an_artifact_with_another_hash_is_never_extracted(tmp_path: Path) -> None:
    reader = Reader(ONE)
    reader.archives[hash_of(ONE)] = TWO
    async with SkillCache(tmp_path, reader).use([version(ONE)]) as found:
        assert "its hash is wrong" in found.problems[hash_of(ONE)]
    assert not (tmp_path / hash_of(ONE)).exists()


async def test_a_hostile_artifact_with_the_right_hash_is_a_problem(tmp_path: Path) -> None:
    evil = skill(Item("../evil", b"x"))
    async with SkillCache(tmp_path / "c", Reader(evil)).use([version(evil)]) as found:
        assert "leaves its directory" in found.problems[hash_of(evil)]
    assert names(tmp_path) == ["c"]


async def test_an_absent_control_plane_is_no_problem_of_the_skill(tmp_path: Path) -> None:
    reader = Reader(ONE, TWO)
    reader.away = True
    with pytest.raises(UnavailableError):
        async with SkillCache(tmp_path, reader).use([version(ONE), version(TWO)]):
            pass


ALTERATIONS = {
    "content": lambda root: (root / "run.sh").write_text("echo evil"),
    "mode": lambda root: (root / "SKILL.md").chmod(0o777),
    "lost file": lambda root: (root / "data" / "n.bin").unlink(),
    "lost manifest": lambda root: root.with_suffix(".json").unlink(),
    "broken manifest": lambda root: root.with_suffix(".json").write_text("{"),
    "link": lambda root: ((root / "run.sh").unlink(), (root / "run.sh").symlink_to("/bin/true")),
}


@pytest.mark.parametrize("how", ALTERATIONS)
async def test_altered_files_are_brought_again(how: str, tmp_path: Path) -> None:
    reader = Reader(ONE)
    cache = SkillCache(tmp_path, reader)
    async with cache.use([version(ONE)]) as found:
        root = found.paths[hash_of(ONE)]
    ALTERATIONS[how](root)

    async with cache.use([version(ONE)]) as found:
        assert (found.paths[hash_of(ONE)] / "run.sh").read_bytes() == b"echo one"
    assert len(reader.asked) == 2
    async with cache.use([version(ONE)]):
        assert len(reader.asked) == 2


async def test_those_not_used_for_longest_make_room_but_never_those_in_use(tmp_path: Path) -> None:
    archives = [skill(Item("n", noise(50_000) + bytes([i]))) for i in range(5)]
    cache = SkillCache(tmp_path, Reader(*archives), most_bytes=120_000)
    first, second, *others = archives

    async with cache.use([version(first)]):
        for data in (second, *others):
            async with cache.use([version(data)]):
                pass
            # Times of use tell them apart even on a coarse clock.
            manifest = tmp_path / f"{hash_of(data)}.json"
            os.utime(manifest, (archives.index(data), archives.index(data)))
        assert (tmp_path / hash_of(first) / "SKILL.md").exists()
    kept = {name.removesuffix(".json") for name in names(tmp_path) if name.endswith(".json")}
    assert hash_of(first) in kept
    assert hash_of(others[-1]) in kept
    assert len(kept) == 2
    assert not (tmp_path / hash_of(second)).exists()
    assert names(tmp_path / "scratch") == []


async def test_what_a_dead_process_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "old").mkdir(parents=True)
    os.utime(tmp_path / "scratch" / "old", (1, 1))
    (tmp_path / "scratch" / "young").mkdir()
    async with SkillCache(tmp_path, Reader(ONE)).use([version(ONE)]):
        assert names(tmp_path / "scratch") == ["young"]


async def test_no_skills_touch_nothing(tmp_path: Path) -> None:
    async with SkillCache(tmp_path / "skills", Reader()).use([]) as found:
        assert not found.paths
    assert names(tmp_path) == []


WORKER = """
    import asyncio, json, sys
    from pathlib import Path
    sys.path[:0] = json.loads(sys.argv[2])
    from agent_runner.adapters.skills.cache import SkillCache
    from unit.skills.test_skill_cache import ONE, TWO, Reader, hash_of, version

    async def main():
        reader = Reader(ONE, TWO)
        cache = SkillCache(Path(sys.argv[1]), reader, most_bytes=1)
        sys.stdin.readline()
        for _ in range(30):
            async with cache.use([version(ONE), version(TWO)]) as found:
                assert not found.problems, found.problems
                for data, word in ((ONE, b"one"), (TWO, b"two")):
                    path = found.paths[hash_of(data)]
                    assert (path / "run.sh").read_bytes() == b"echo " + word
                    await asyncio.sleep(0.001)
                    assert (path / "SKILL.md").stat().st_size
        print(len(reader.asked))

    asyncio.run(main())
"""


def test_processes_share_the_directory_while_each_makes_room(tmp_path: Path) -> None:
    """With room for one byte everybody always removes what nobody uses; still none loses its files."""
    command = [sys.executable, "-c", textwrap.dedent(WORKER), str(tmp_path), json.dumps(sys.path)]
    workers = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    results = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], results
