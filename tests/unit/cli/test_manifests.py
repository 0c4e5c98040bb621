from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runner.cli import _manifests
from agent_runner.cli._errors import NOT_FOUND, CommandError
from agent_runner.cli.apply import skill_archive

ROOT = Path(__file__).resolve().parents[3]


def problems_of(text: str) -> list[str]:
    try:
        manifests = _manifests.load([("f.yaml", text)], org="local")
    except CommandError as error:
        return list(error.lines)
    return [str(problem) for problem in _manifests.check(manifests)]


def read(text: str):  # type: ignore[no-untyped-def]
    (manifest,) = _manifests.load([("f.yaml", text)], org="local")
    return manifest.resource


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: Agnt", "f.yaml:1:7: 'Agnt' is no kind of resource. Did you mean Agent?"),
        ("metadata: {}", "f.yaml:1:1: `kind` is missing. It is one of Agent,"),
        ("{}", "f.yaml:1:1: `kind` is missing."),
        ("kind: Agent\nmetadata: {labels: {}}\nspec: {skill_refs: []}", "metadata: name is missing."),
        (
            "kind: Agent\nmetadata: {name: ' '}\nspec: {}",
            "f.yaml:2:12: metadata.name: has no letter or digit",
        ),
        ("kind: AgentInstance\nspec: {agent_id: a, agentId: b}", "f.yaml:2:21: agent_id is given twice"),
        (
            "kind: McpServer\nspec: {stdio: {command: a}, http: {url: b}}",
            "f.yaml:2:29: http and stdio are alternatives; give one of them.",
        ),
        (
            "kind: Session\nmetadata: {name: s}\n---\nkind: Session\nmetadata: {name: S}",
            "f.yaml:5:12: session/s is described in f.yaml:1 already.",
        ),
        ("- 1", "f.yaml:1:1: A manifest is a mapping"),
        ("just text", "f.yaml:1:1: A manifest is a mapping"),
        ("kind: Agent\nspce: {}", "f.yaml:2:1: Agent has no field 'spce'. Did you mean spec?"),
        ("kind: Agent\nspec: {instructons: x}", "f.yaml:2:8: AgentSpec has no field 'instructons'."),
        ("kind: Agent\nspec: 5", "f.yaml:2:7: AgentSpec is a mapping, not the number 5."),
        ("kind: Agent\nspec:\n  skill_refs: a", "f.yaml:3:15: skill_refs is a list, not the text 'a'."),
        ("kind: Agent\nspec:\n  instructions: [a]", "f.yaml:3:17: instructions: must be text, not a list"),
        ("kind: Agent\nmetadata: {name: 12}", "f.yaml:2:18: name: must be text, not the number 12; put it"),
        ("kind: Agent\nmetadata: {labels: [a]}", "f.yaml:2:20: labels is a mapping of names to values"),
        ("kind: Agent\nmetadata: {labels: {1: a}}", "f.yaml:2:21: The name 1 is the number 1"),
        ("kind: Agent\nmetadata: {owner_scope: orgnization}", "Did you mean organization?"),
        ("kind: Agent\nmetadata: {owner_scope: 77}", "f.yaml:2:25: owner_scope: there is no value 77."),
        (
            "kind: Agent\nspec: {options: {limits: {tool_calls: many}}}",
            "f.yaml:2:39: tool_calls: must be a whole",
        ),
        ("kind: Agent\nspec: {options: {limits: {tool_calls: 3000000000}}}", "must be a whole number from"),
        ("kind: Agent\nspec: {options: {model: {temperature: hot}}}", "temperature: must be a number"),
        (
            "kind: Agent\nspec: {options: {model: {temperature: 3}}}",
            "f.yaml:2:26: spec.options.model.temperature",
        ),
        (
            "kind: Agent\nmetadata: {name: a}\nspec: {instructions: short}",
            "f.yaml:3:8: spec.instructions: must",
        ),
        ("kind: Agent\nspec: {instructions: long enough}", "metadata: name is missing."),
        ("kind: Agent\napiVersion: v9\nmetadata: {name: a}", "f.yaml:2:1: api_version: must equal"),
        ("kind: Session\nmetadata: {name: s}", "spec.agent_instance_id"),
        ("kind: AgentExecution\nspec: {callback_token: '*'}", "callback_token: must be base64."),
        ("kind: Agent\nkind: Agent", "f.yaml:2:1: This is no valid YAML"),
        ("kind: [", "f.yaml:1:8: This is no valid YAML"),
        ("kind: *x", "This is no valid YAML"),
    ],
)
def test_each_problem_is_told_with_its_place(text: str, expected: str) -> None:
    assert any(expected in problem for problem in problems_of(text)), problems_of(text)


def test_all_problems_of_all_documents_are_told_at_once() -> None:
    found = problems_of("kind: Agnt\n---\nkind: Agent\nspec: {a: 1, b: 2}\n---\nkind: Session\nspec: 1\n")

    assert [problem.split(":")[1] for problem in found] == ["1", "4", "4", "7"]


def test_both_spellings_and_the_short_forms_mean_the_same() -> None:
    long = read(
        "api_version: agentic.stigmer.ai/v1\nkind: AgentInstance\n"
        "metadata: {name: i, owner_scope: organization, org: local}\n"
        "spec: {agent_id: a, environment_refs: [{slug: e}]}\n"
    )
    short = read(
        "apiVersion: agentic.stigmer.ai/v1\nkind: AgentInstance\n"
        "metadata: {name: i, ownerScope: ORGANIZATION}\nspec: {agentId: a, environmentRefs: [e]}\n"
    )

    assert long == short


def test_environment_values_may_be_words_and_stay_text() -> None:
    spec = read(
        "kind: Environment\nmetadata: {name: e}\nspec: {data: {A: no, B: {value: x, isSecret: true}}}"
    ).spec

    assert (spec.data["A"].value, spec.data["A"].is_secret) == ("no", False)
    assert (spec.data["B"].value, spec.data["B"].is_secret) == ("x", True)


def test_enum_values_need_no_prefix() -> None:
    spec = read("kind: Agent\nspec: {options: {skill_disclosure: progressive}}").spec
    assert spec.options.skill_disclosure == 2
    spec = read("kind: Agent\nspec: {options: {skill_disclosure: SKILL_DISCLOSURE_FULL}}").spec
    assert spec.options.skill_disclosure == 1


def test_status_is_never_applied() -> None:
    agent = read("kind: Agent\nmetadata: {name: a}\nstatus: {default_instance_id: x, nonsense: 1}\n")

    assert not agent.HasField("status")


def test_empty_documents_and_comments_are_left_out() -> None:
    assert _manifests.load([("f.yaml", "---\n# nothing\n---\n")], org="local") == []


def test_a_violation_deep_inside_is_placed_at_the_nearest_thing_there() -> None:
    manifest = _manifests.load([("f", "kind: Agent\nspec:\n  sub_agents:\n    - name: a\n")], org="local")[0]

    assert manifest.place("spec.sub_agents[0].instructions") == (4, 7)
    assert manifest.place("spec.nothing.here") == (2, 1)
    assert manifest.place("metadata.name") == (1, 1)


@given(st.text(max_size=200))
def test_no_text_whatever_takes_the_reader_down(text: str) -> None:
    for problem in problems_of(text):
        assert re.match(r"f\.yaml:\d+:\d+: ", problem)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = st.sampled_from(
    [
        "metadata",
        "spec",
        "skill_refs",
        "mcp_servers",
        "sub_agents",
        "env_spec",
        "options",
        "labels",
        "name",
        "data",
    ]
)


@given(st.dictionaries(_FIELDS, _VALUES | st.dictionaries(_FIELDS, _VALUES, max_size=3), max_size=3))
def test_values_of_every_wrong_type_are_told_and_never_raised(values: dict[str, object]) -> None:
    import json

    for problem in problems_of(json.dumps({"kind": "Agent", **values})):
        assert re.match(r"f\.yaml:\d+:\d+: ", problem)


def test_the_examples_are_valid() -> None:
    files = [
        (str(path), path.read_text())
        for path in _manifests.files_of([str(ROOT / "examples")], recursive=False)
    ]

    manifests = _manifests.load(files, org="local")

    assert _manifests.check(manifests) == []
    assert [m.kind.word for m in manifests] == ["environment", "agent", "agent", "instance"]


def test_the_same_skill_gives_the_same_archive() -> None:
    assert skill_archive("# A") == skill_archive("# A")
    assert skill_archive("# A") != skill_archive("# B")


def test_directories_give_their_files_in_order_and_only_what_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.yaml", "a.yml", "c.txt", "deep/d.yaml"):
        (tmp_path / name).write_text("kind: Agent")

    flat = [p.name for p in _manifests.files_of([str(tmp_path)], recursive=False)]
    deep = [p.name for p in _manifests.files_of([str(tmp_path)], recursive=True)]

    assert (flat, deep) == (["a.yml", "b.yaml"], ["a.yml", "b.yaml", "d.yaml"])
    with pytest.raises(CommandError, match=r"has no \.yaml"):
        list(_manifests.files_of([str(_empty(tmp_path))], recursive=False))
    with pytest.raises(CommandError, match="does not exist") as missing:
        list(_manifests.files_of(["nope"], recursive=False))
    assert (missing.value.code, missing.value.exit_code) == ("NOT_FOUND", NOT_FOUND)


def _empty(path: Path) -> Path:
    (path / "empty").mkdir()
    return path / "empty"
