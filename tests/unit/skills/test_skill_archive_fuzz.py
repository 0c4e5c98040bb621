"""Whatever bytes come, the reader refuses them in words, or reads what every other reader reads."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

from hostile_archives import GOOD, Item, noise, skill
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent_runner.domain import archives, skills
from agent_runner.domain.archives import ArchiveLimits
from agent_runner.errors import ArtifactError

LIMITS = ArchiveLimits()
PLAIN = skill(Item("run.sh", b"echo hi"), Item("data/n.bin", noise(300)), Item("d/", b"", mode=0o040755))


def streamed() -> bytes:
    buffer = io.BytesIO()

    class Pipe(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            return buffer.write(data)

    with zipfile.ZipFile(Pipe(), "w", zipfile.ZIP_DEFLATED) as file:  # type: ignore[call-overload]
        file.writestr("SKILL.md", GOOD)
        file.writestr("a/b", noise(100))
    return buffer.getvalue()


SEEDS = (PLAIN, streamed())


def contents(data: bytes) -> dict[str, bytes]:
    file = io.BytesIO(data)
    entries = archives.read_entries(file, LIMITS)
    return {entry.name: b"".join(archives.read_file(file, entry)) for entry in entries if not entry.is_dir}


def check(data: bytes) -> None:
    try:
        found = contents(data)
    except ArtifactError as error:
        assert str(error)
        assert str(error).isprintable()
        return
    with zipfile.ZipFile(io.BytesIO(data)) as other:
        names = [info.filename for info in other.infolist() if not info.is_dir()]
        assert sorted(names) == sorted(found)
        assert {name: other.read(name) for name in names} == found


@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4
    ),
)
def test_altered_bytes(seed: bytes, changes: list[tuple[float, int]]) -> None:
    data = bytearray(seed)
    for where, value in changes:
        data[int(where * len(data))] = value
    check(bytes(data))


@settings(max_examples=500, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    start=st.floats(0, 1),
    end=st.floats(0, 1),
    insert=st.binary(max_size=50),
)
def test_cut_and_spliced_bytes(seed: bytes, start: float, end: float, insert: bytes) -> None:
    low, high = sorted((int(start * len(seed)), int(end * len(seed))))
    check(seed[:low] + insert + seed[high:])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
@example(b"PK\x05\x06" + b"\0" * 18)
@example(b"PK\x03\x04PK\x01\x02PK\x05\x06")
def test_any_bytes(data: bytes) -> None:
    check(data)


NAMES = st.text(st.sampled_from("aA/.\\: \u00e9e\u0301\n\0\u202eSKILLmd"), min_size=1, max_size=12)


@settings(max_examples=500, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=6))
def test_any_names(names: list[str]) -> None:
    data = skill(*(Item(name, b"x", mode=0) for name in names))
    try:
        found = contents(data)
    except ArtifactError:
        return
    for name in found:
        assert not name.startswith("/")
        assert ".." not in name.split("/")
    assert len({archives.comparable(name) for name in found}) == len(found)


FRONT = st.text(st.sampled_from("-namedscripto:\n \"'[]{}&*!|>#,?1%@`\t\u00fc"), max_size=80)


@settings(max_examples=1000, deadline=None)
@given(FRONT.map(lambda text: f"---\n{text}\n---\nbody") | FRONT)
@example("---\nname: a\ndescription: 2026-01-01\n---\n")
@example("---\nname: ? a\n---\n")
@example("---\n%YAML 9.9\n---\n---\n")
def test_any_front_matter(text: str) -> None:
    read: Callable[[str], object] = skills.read_skill_md
    try:
        read(text)
    except ArtifactError as error:
        assert str(error).startswith("SKILL.md")
