"""`skill …` against a real control plane on stores in memory."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import shlex
import stat
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from unit.cli.conftest import Command
from unit.services.fakes.resources import agent as an_agent
from unit.services.fakes.workflows import MemoryWorkflows

from agent_runner.adapters.announcers.memory import MemoryAnnouncer
from agent_runner.adapters.artifacts.objects import ObjectArtifactStore
from agent_runner.adapters.store.memory import MemoryEventLog, MemoryResourceStore
from agent_runner.cli import _skill_packs
from agent_runner.cli._skill_packs import IGNORED, IgnoreRules, read_folder, write_zip
from agent_runner.controlplane.server import ControlPlane
from agent_runner.domain import archives
from agent_runner.services.container import Services, build_services


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The server logs to the stdout of the command: they are one process here."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return build_services(
        MemoryResourceStore(),
        MemoryEventLog(),
        MemoryAnnouncer(),
        MemoryWorkflows(),
        ObjectArtifactStore.from_url("memory:///"),
        spool=tmp_path,
    )


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop in a thread, since each command runs one of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(120)
    loop.close()


@pytest.fixture
def skills(
    services: Services,
    loop: asyncio.AbstractEventLoop,
    offline: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Command]:
    server = ControlPlane(services, address="127.0.0.1:0", api_key=None, version="0")
    port = asyncio.run_coroutine_threadsafe(server.start(), loop).result(120)
    monkeypatch.setenv("AGENT_RUNNER_ADDRESS", f"127.0.0.1:{port}")
    yield lambda *arguments: offline("skill", *arguments)
    asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(120)


def make_skill(folder: Path, version: object = 1, name: str = "pdf-tools") -> Path:
    (folder / "scripts").mkdir(parents=True, exist_ok=True)
    (folder / "SKILL.md").write_text(f"---\nname: {name}\ndescription: Reads PDFs.\n---\n# PDF {version}\n")
    (folder / "scripts" / "run.sh").write_text("#!/bin/sh\necho hi\n")
    return folder


def pushed_hash(output: str) -> str:
    return next(line.split()[1] for line in output.splitlines() if line.strip().startswith("version"))


def test_a_folder_is_pushed_listed_shown_and_pulled(skills: Command, tmp_path: Path) -> None:
    folder = make_skill(tmp_path / "pdf-tools")
    (folder / "tool").write_bytes(b"x")
    (folder / "tool").chmod(0o755)
    (folder / ".env").write_text("SECRET=1")

    pushed = skills("push", str(folder), "--tag", "v1")
    assert pushed.code == 0, pushed.err
    hash = pushed_hash(pushed.out)
    assert pushed.out.splitlines()[0] == "skill/pdf-tools pushed"
    assert f"location  /bin/skills/{hash}/" in pushed.out
    assert "in 3 files" in pushed.out
    assert pushed.err == "left out: .env (ignored)\n"

    header, row = skills("list").out.splitlines()
    assert header.split() == ["NAME", "VERSION", "TAG", "SIZE", "DESCRIPTION"]
    assert row.split()[:3] == ["pdf-tools", hash[:12], "v1"]
    assert row.endswith("Reads PDFs.")
    assert "# PDF 1" in skills("show", "pdf-tools:v1").out
    shown = json.loads(skills("show", "pdf-tools", "-o", "json").out)
    assert shown["status"]["versionHash"] == hash
    for by_id in (shown["metadata"]["id"], f"{shown['metadata']['id']}:v1"):
        assert "# PDF 1" in skills("show", by_id).out

    pulled = skills("pull", f"pdf-tools:{hash}", str(tmp_path / "copy"))
    assert pulled.code == 0, pulled.err
    assert (tmp_path / "copy" / "SKILL.md").read_text() == (folder / "SKILL.md").read_text()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "copy").rglob("*")}
    assert (modes["run.sh"], modes["tool"], modes["SKILL.md"]) == (0o755, 0o755, 0o644)
    assert skills("push", str(tmp_path / "copy"), "--name", "pdf-tools").out.startswith("skill/pdf-tools")


def test_the_same_folder_again_is_unchanged(skills: Command, tmp_path: Path) -> None:
    first = skills("push", str(make_skill(tmp_path / "a")))
    for path in (tmp_path / "a").rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    again = skills("push", str(tmp_path / "a"))
    assert again.out == first.out.replace("pushed", "unchanged", 1)


def test_a_dry_run_stores_nothing(skills: Command, tmp_path: Path) -> None:
    told = skills("push", str(make_skill(tmp_path / "a")), "--dry-run", "-o", "json")
    answer = json.loads(told.out)
    assert (answer["newVersion"], answer["leftOut"]) == (True, [])
    assert skills("list").err == "There are no skills yet. Push one: agent-runner skill push DIRECTORY\n"


def test_history_tells_each_version_and_rollback_goes_back(skills: Command, tmp_path: Path) -> None:
    hashes = [
        pushed_hash(skills("push", str(make_skill(tmp_path / "a", i)), "--tag", f"v{i}").out)
        for i in range(3)
    ]
    rows = [line.split() for line in skills("history", "pdf-tools").out.splitlines()[1:]]
    assert [(row[1], row[2]) for row in rows] == [(hashes[i], f"v{i}") for i in (2, 1, 0)]
    assert [row[-1] for row in rows] == ["current", "B", "B"]

    back = skills("rollback", "pdf-tools", hashes[0][:10])
    assert back.out == f"skill/pdf-tools is at {hashes[0][:12]} (v0)\n"
    assert "# PDF 0" in skills("show", "pdf-tools").out
    assert "# PDF 2" in skills("show", "pdf-tools:v2").out
    assert skills("rollback", "pdf-tools", "v9").code == 5


def test_a_skill_in_use_is_deleted_by_force_alone(
    skills: Command, services: Services, loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    skills("push", str(make_skill(tmp_path / "a")))
    user = an_agent()
    user.metadata.org = "local"
    user.spec.skill_refs.add(slug="pdf-tools")
    asyncio.run_coroutine_threadsafe(services.agents.create(user), loop).result(120)

    assert "Give --yes" in skills("delete", "pdf-tools").err
    refused = skills("delete", "pdf-tools", "--yes")
    assert (refused.code, "is used by" in refused.err) == (6, True)
    forced = skills("delete", "pdf-tools", "--yes", "--force")
    assert (forced.code, forced.out) == (0, "skill/pdf-tools deleted\n")
    assert "still refer" in forced.err
    assert skills("show", "pdf-tools").code == 5


def test_what_is_wrong_is_told_before_anything_is_sent(offline: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    wrong = make_skill(tmp_path / "wrong", name="Not Right")
    deep = make_skill(tmp_path / "deep")
    (deep / "/".join("d" * 20)).mkdir(parents=True)
    (deep / "/".join("d" * 20) / "f").touch()
    clash = make_skill(tmp_path / "clash")
    (clash / "RUN").touch()
    (clash / "run").touch()

    for folder, message in {
        "empty": "has no SKILL.md",
        str(wrong): "must be in lower case",
        str(deep): "deep",
        str(clash): "one name on some systems",
        str(tmp_path / "none"): "does not exist",
    }.items():
        for verb in ("push", "lint"):
            told = offline("skill", verb, str(tmp_path / folder))
            assert told.code == 2, told
            assert message in told.err


def test_lint_gives_advice_and_needs_no_server(offline: Command, tmp_path: Path) -> None:
    folder = make_skill(tmp_path / "a")
    assert offline("skill", "lint", str(folder)).out.startswith("skill/pdf-tools: 2 files")
    with (folder / "SKILL.md").open("a") as text:
        text.write("See [this](scripts/run.sh), [that](lost.md), [there](https://example.com).\n")
    told = offline("skill", "lint", str(folder))
    assert (told.code, told.out.splitlines()[0]) == (
        0,
        "advice: SKILL.md refers to 'lost.md', which is not in the skill.",
    )
    assert offline("skill", "lint", str(folder), "--strict").code == 1


def test_pull_never_overwrites(skills: Command, tmp_path: Path) -> None:
    skills("push", str(make_skill(tmp_path / "pdf-tools")))
    assert skills("pull", "pdf-tools").code == 6
    kept = skills("pull", "pdf-tools", "--zip", str(tmp_path / "kept.zip"))
    assert kept.code == 0, kept.err
    assert "SKILL.md" in zipfile.ZipFile(tmp_path / "kept.zip").namelist()


# -- packing ----------------------------------------------------------------------------------------


def packed(folder: Path) -> bytes:
    buffer = io.BytesIO()
    write_zip(read_folder(folder).files, buffer, lambda _: None)
    return buffer.getvalue()


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    one, two = make_skill(tmp_path / "one"), make_skill(tmp_path / "two")
    for name in ("b", "a", "c"):
        (one / name).write_text(name)
    for name in ("c", "b", "a"):
        (two / name).write_text(name)
        os.utime(two / name, (1, 1))
        (two / name).chmod(0o600)
    assert packed(one) == packed(two)

    (two / "a").chmod(0o700)
    assert packed(one) != packed(two), "whether a file is executable is content"
    entries = archives.read_entries(io.BytesIO(packed(two)), archives.ArchiveLimits())
    assert [entry.name for entry in entries] == ["SKILL.md", "a", "b", "c", "scripts/run.sh"]


def test_links_and_special_files_stay_out(tmp_path: Path) -> None:
    folder = make_skill(tmp_path / "a")
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "dir").symlink_to("/etc")
    os.mkfifo(folder / "pipe")
    found = read_folder(folder)
    assert found.left_out == [("dir", "a link"), ("link", "a link"), ("pipe", "no regular file")]
    assert [file.name for file in found.files] == ["SKILL.md", "scripts/run.sh"]


IGNORING = [
    # path, whether it is a directory, patterns of .skillignore, whether it is left out
    (".git", True, [], True),
    ("src/__pycache__", True, [], True),
    ("a/.env.local", False, [], True),
    ("environment.py", False, [], False),
    ("notes.log", False, [], True),
    ("catalog", False, [], False),
    ("lib/x.so", False, [], True),
    ("lib/x.so", False, ["!lib/*.so"], False),
    ("drafts", True, ["drafts/"], True),
    ("drafts", False, ["drafts/"], False),
    ("a/drafts", True, ["/drafts"], False),
    ("a/b/c.txt", False, ["a/**/c.txt"], True),
    ("a/c.txt", False, ["a/**/c.txt"], True),
    ("a/b.md", False, ["*.md", "!b.md"], False),
    ("a/x.md", False, ["a/?.md"], True),
    ("a/xy.md", False, ["a/?.md"], False),
    ("f1", False, ["f[0-4]"], True),
    ("f7", False, ["f[!0-4]"], True),
    ("#a", False, ["#a"], False),
    ("#a", False, ["\\#a"], True),
    ("a.b", False, ["a?b"], True),
    ("axb", False, ["a.b"], False),
    ("x/y", False, ["", "   ", "# comment"], False),
    ("deep/er/x", False, ["deep/**"], True),
]


@pytest.mark.parametrize(("name", "is_dir", "patterns", "left_out"), IGNORING)
def test_what_is_left_out(name: str, is_dir: bool, patterns: list[str], left_out: bool) -> None:
    assert IgnoreRules([*IGNORED, *patterns]).ignores(name, is_dir) is left_out


def test_the_ignore_file_is_read_and_stays_at_home(tmp_path: Path) -> None:
    folder = make_skill(tmp_path / "a")
    (folder / _skill_packs.IGNORE_FILE).write_text("drafts/\n*.bak\n")
    (folder / "drafts").mkdir()
    (folder / "drafts" / "one.md").touch()
    (folder / "x.bak").touch()
    assert [name for name, _ in read_folder(folder).left_out] == [".skillignore", "drafts/", "x.bak"]


def test_the_example_skill_is_without_fault(offline: Command) -> None:
    example = Path(__file__).parents[3] / "examples" / "skills" / "text-statistics"
    told = offline("skill", "lint", "--strict", str(example))
    assert (told.code, told.err) == (0, "")


def blocks(language: str) -> list[str]:
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "writing-skills.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", guide, re.DOTALL)


def test_the_guide_shows_what_works(offline: Command, skills: Command, tmp_path: Path) -> None:
    folder = make_skill(tmp_path / "text-statistics")
    (text,) = blocks("markdown")
    (folder / "SKILL.md").write_text(text)
    told = skills("lint", "--strict", str(folder))
    assert told.code == 0, told
    (manifest,) = blocks("yaml")
    (tmp_path / "agent.yaml").write_text(manifest)
    assert offline("apply", "-f", str(tmp_path / "agent.yaml")).out == "agent/analyst created\n"
    for version in ("first", "second"):
        (folder / "SKILL.md").write_text(text + version)
        skills("push", str(folder), "--tag", "stable")
    hash = skills("history", "text-statistics").out.splitlines()[2].split()[1]
    for line in filter(None, "\n".join(blocks("sh")).splitlines()):
        arguments = shlex.split(line.partition("#")[0].replace("1a2b3c4d5e6f", hash[:12]))[1:]
        done = offline(*arguments, *(["--yes", "--force"] if "delete" in arguments else []))
        assert done.code == 0, (line, done)
