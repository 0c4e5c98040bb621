"""Skills as people use them: pushed by a command, run by an agent in the local sandbox."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from acceptance.test_cli import ROOT, WITHIN, Home, read_until, up  # noqa: F401 (a fixture)

EXAMPLES = ROOT / "examples" / "skills"
AGENT = """\
kind: Agent
metadata: {{name: {name}}}
spec:
  instructions: You do what the skill says.
  skillRefs: [{{slug: {skill}, version: {version}}}]
  options: {{skillDisclosure: {disclosure}}}
"""
TRESPASS = """\
turns:
  - steps:
      - calls:
          - name: execute
            args:
              command: |
                exec 2>/dev/null
                cd /bin/skills/*/ && pwd
                touch ../new; touch new; echo x >> SKILL.md; rm -f SKILL.md; chmod u+w SKILL.md
                mv SKILL.md moved; ln -s /etc link; mkdir sub
                ls; stat -c '%a %n' SKILL.md scripts/statistics.py
      - text: "Tried."
"""
SLOW = """\
turns:
  - steps:
      - text: "one two three four five six seven eight nine ten"
        delay_ms: 300
        calls:
          - {name: execute, args: {command: "tail -n 1 /bin/skills/*/SKILL.md"}}
      - text: "Read."
"""


def push(home: Home, folder: Path, *options: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(home.ok("skill", "push", str(folder), *options, "-o", "json"))
    return answer


def make_agent(home: Home, name: str, skill: str, version: str = "latest", disclosure: int = 1) -> None:
    manifest = home.path / f"{name}.yaml"
    manifest.write_text(AGENT.format(name=name, skill=skill, version=version, disclosure=disclosure))
    home.ok("apply", "-f", str(manifest))


def status(home: Home, execution: str = "latest") -> dict[str, Any]:
    return home.json("get", "execution", execution)["status"]  # type: ignore[return-value]


def result(status: dict[str, Any], tool: str = "execute") -> str:
    return next(str(call["result"]) for call in status["toolCalls"] if call["name"] == tool)


@pytest.fixture
def skill(tmp_path: Path) -> Path:
    """A skill of its own for each test, of the name of its folder."""
    folder = tmp_path / f"notes-{tmp_path.name.rstrip('0').replace('_', '-')[-20:].strip('-')}"
    folder.mkdir()
    return folder


def write_skill(folder: Path, text: str) -> None:
    head = f"---\nname: {folder.name}\ndescription: Notes.\n---\n"
    (folder / "SKILL.md").write_text(f"{head}# Notes\n{text}\n")


def test_the_example_runs_its_script_in_the_sandbox(up: Home) -> None:  # noqa: F811
    pushed = push(up, EXAMPLES / "text-statistics", "--tag", "stable")["skill"]
    up.ok("apply", "-f", str(EXAMPLES / "analyst.yaml"))
    script = f"script:{EXAMPLES / 'analyst-script.yaml'}"
    text = "Agents run durably. They use skills, which are folders."

    answer = up.ok("run", "--agent", "analyst", "--model", script, text)

    assert answer == "The skill has counted; the numbers are above.\n"
    found = status(up)
    assert '{"words": 9, "sentences": 2, "syllables": 13, "reading_ease": 80.1}' in result(found)
    assert found["run"]["skills"] == [
        {
            "name": "text-statistics",
            "version": "stable",
            "hash": pushed["status"]["versionHash"],
            "org": "local",
        }
    ]


def test_a_skill_cannot_be_changed_from_inside(up: Home) -> None:  # noqa: F811
    pushed = push(up, EXAMPLES / "text-statistics")["skill"]
    make_agent(up, "trespasser", "text-statistics")
    for _ in range(2):
        up.ok("run", "--agent", "trespasser", "--model", up.script(TRESPASS), "go")
        lines = result(status(up)).splitlines()
        assert lines[:6] == [
            f"/bin/skills/{pushed['status']['versionHash']}",
            "SKILL.md",
            "references",
            "scripts",
            "644 SKILL.md",
            "755 scripts/statistics.py",
        ]


def test_a_running_execution_keeps_its_version_while_the_tag_moves(up: Home, skill: Path) -> None:  # noqa: F811
    write_skill(skill, "first")
    push(up, skill, "--tag", "stable")
    make_agent(up, "keeper", skill.name, "stable")
    with up.start("run", "--agent", "keeper", "--model", up.script(SLOW), "go") as running:
        read_until(running, "model ")
        write_skill(skill, "second")
        moved = push(up, skill, "--tag", "stable")["skill"]["status"]["versionHash"]
        assert running.wait(WITHIN) == 0

    before = status(up)
    assert result(before).startswith("first")
    assert before["run"]["skills"][0]["hash"] != moved
    up.ok("run", "--agent", "keeper", "--model", up.script(SLOW), "go")
    assert result(status(up)).startswith("second")


def test_what_is_missing_is_told_and_the_run_goes_on(up: Home, skill: Path) -> None:  # noqa: F811
    write_skill(skill, "here")
    pushed = push(up, skill)["skill"]["status"]
    make_agent(up, "loser", skill.name)
    (up.data_dir / "artifacts" / pushed["artifactStorageKey"]).unlink()
    shutil.rmtree(up.data_dir / "skills" / pushed["versionHash"], ignore_errors=True)
    up.ok("run", "--agent", "loser", "--model", "script:echo", "go")
    assert "its files are not available" in " ".join(status(up)["run"]["warnings"])

    up.ok("skill", "delete", skill.name, "--yes", "--force")
    told = up.run("run", "--agent", "loser", "--model", "script:echo", "go")
    assert told.returncode == 0
    assert f"Skill {skill.name}:latest is not available and was left out" in " ".join(told.stderr.split())
