"""No archive writes outside, costs much memory, or is half stored."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hostile_archives import GOOD, HOSTILE, Item, noise, skill

from agent_runner.adapters.skills.trees import SkillTrees
from agent_runner.domain import archives, skills
from agent_runner.domain.archives import ArchiveLimits
from agent_runner.errors import ArtifactError

LIMITS = ArchiveLimits()
MOST_MEMORY = 64 << 20


def check(data: bytes) -> list[archives.Entry]:
    """What a push does."""
    file = io.BytesIO(data)
    entries = archives.read_entries(file, LIMITS)
    skills.decode_skill_md(b"".join(archives.read_file(file, skills.find_skill_md(entries))))
    archives.check_contents(file, entries)
    return entries


def everything_below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_there_are_enough_hostile_archives() -> None:
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_the_reason_said(name: str) -> None:
    build, message = HOSTILE[name]
    with pytest.raises(ArtifactError, match=message):
        check(build())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_writes_nothing_anywhere(name: str, tmp_path: Path) -> None:
    """As if it had got past the push: a store of another make, or altered on disk."""
    trees = SkillTrees(tmp_path / "cache", LIMITS)
    trees.prepare()
    before = everything_below(tmp_path)

    try:
        trees.extract("a" * 64, io.BytesIO(HOSTILE[name][0]()))
    except ArtifactError:
        assert everything_below(tmp_path) == before
    else:
        # Only the rules about the text of SKILL.md are the push's alone.
        assert name.startswith("SKILL.md")
        outside = [path for path in everything_below(tmp_path) if "a" * 64 not in path]
        assert outside == before


def test_hostile_archives_cost_little_memory(tmp_path: Path) -> None:
    for number, (build, _) in enumerate(HOSTILE.values()):
        (tmp_path / f"{number:03}.zip").write_bytes(build())
    script = f"""
import json, sys
from pathlib import Path
sys.path[:0] = {sys.path!r}
from agent_runner.adapters.skills.trees import SkillTrees
from agent_runner.domain import archives, skills
from agent_runner.errors import ArtifactError
limits = archives.ArchiveLimits()
trees = SkillTrees(Path(sys.argv[1]) / "cache", limits)
trees.prepare()

def peak():
    # Not ru_maxrss: that of a new process begins with the peak of the one it came from.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

def run(path):
    with path.open("rb") as file:
        try:
            entries = archives.read_entries(file, limits)
            b"".join(archives.read_file(file, skills.find_skill_md(entries)))
            archives.check_contents(file, entries)
        except ArtifactError:
            pass
        try:
            trees.extract("a" * 64, file)
        except ArtifactError:
            pass

paths = sorted(Path(sys.argv[1]).glob("*.zip"))
start = peak()
grown = []
for path in paths:
    run(path)
    grown.append(peak() - start)
print(json.dumps(grown))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    grown = json.loads(done.stdout)
    assert len(grown) == len(HOSTILE)
    print(f"{len(grown)} archives: +{grown[-1] >> 20} MiB")
    assert grown[-1] <= MOST_MEMORY, dict(zip(HOSTILE, grown, strict=True))


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return buffer.getvalue()


class Pipe(io.RawIOBase):
    """Something that cannot seek, so that sizes come after the content."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.data += data  # type: ignore[operator]
        return len(data)  # type: ignore[arg-type]


def test_archives_of_other_tools_are_read(tmp_path: Path) -> None:
    files = {"SKILL.md": GOOD, "scripts/run.sh": b"echo hi\n", "data/n.bin": noise(300_000), "empty": b""}
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as file:  # type: ignore[call-overload]
        file.comment = b"made by a pipe"
        file.writestr("docs/", b"")
        for name, data in files.items():
            file.writestr(name, data)

    for data in (
        zipped(files),
        bytes(pipe.data),
        skill(Item("d\u00e9j\u00e0 vu.txt", b"x"), Item("n", b"y", flags=0)),
    ):
        names = [entry.name for entry in check(data)]
        assert names.count("SKILL.md") == 1


def test_an_archive_in_an_archive_stays_a_file(tmp_path: Path) -> None:
    bomb = zipped({"zeros": b"\0" * (20 << 20)})
    nested = zipped({f"{i}.zip": bomb for i in range(10)})
    trees = SkillTrees(tmp_path, LIMITS)
    trees.prepare()

    trees.extract("b" * 64, io.BytesIO(zipped({"SKILL.md": GOOD, "nested.zip": nested})))

    assert (trees.path("b" * 64) / "nested.zip").read_bytes() == nested


def test_scripts_and_what_was_executable_are_executable(tmp_path: Path) -> None:
    data = skill(
        Item("run.sh", b"x"),
        Item("bin/tool", b"x", mode=0o100755),
        Item("notes.txt", b"x", mode=0o104666),
        Item("lib/A.PY", b"x", system=0, attributes=0x20),
    )
    trees = SkillTrees(tmp_path, LIMITS)
    trees.prepare()
    trees.extract("c" * 64, io.BytesIO(data))

    root = trees.path("c" * 64)
    modes = {str(path.relative_to(root)): oct(path.stat().st_mode & 0o7777) for path in root.rglob("*")}
    assert modes == {
        "SKILL.md": "0o644",
        "run.sh": "0o755",
        "bin": "0o755",
        "bin/tool": "0o755",
        "notes.txt": "0o644",
        "lib": "0o755",
        "lib/A.PY": "0o755",
    }
