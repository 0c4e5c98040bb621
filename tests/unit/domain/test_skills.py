"""Rules about skills: versions, keys, SKILL.md, the prompt."""

from __future__ import annotations

import pytest

from agent_runner.domain import skills
from agent_runner.domain.ids import make_id
from agent_runner.domain.skill_prompts import PromptSkill, prompt_section, with_skills
from agent_runner.domain.skills import Version
from agent_runner.errors import ArtifactError, InvalidRequestError
from agent_runner.v1.options_pb2 import SkillDisclosure

A, B, C, D = (letter * 64 for letter in "abcd")
CURRENT = Version("skv-5", C, "stable")
ARCHIVE = [
    Version("skv-1", A, "stable"),
    Version("skv-2", A, "v1"),
    Version("skv-3", B, "v1"),
    Version("skv-4", B, ""),
    Version("skv-0", D, "latest"),
]

RESOLUTION = [
    # what is asked for, which version it means
    ("", "skv-5", "none means the current one"),
    ("latest", "skv-5", "so does latest"),
    ("stable", "skv-5", "a tag: the current one where it has it"),
    ("v1", "skv-3", "else the newest archived that was given it"),
    (C, "skv-5", "a hash: the current one where it is it"),
    (B, "skv-4", "else an archived one"),
    (A, "skv-2", "the newest, where several pushes had the bytes"),
    ("V1", None, "tags tell small and capital letters apart"),
    ("v2", None, "an unknown tag"),
    ("e" * 64, None, "an unknown hash"),
    (C[:12], None, "a part of a hash is a tag"),
    (C.upper(), None, "hashes are in small letters"),
]


@pytest.mark.parametrize(("asked", "means", "why"), RESOLUTION, ids=[row[2] for row in RESOLUTION])
def test_a_reference_means_the_current_version_or_else_an_archived_one(
    asked: str, means: str | None, why: str
) -> None:
    found = skills.resolve(asked, CURRENT, ARCHIVE)
    assert (found and found.id) == means, why
    assert skills.resolve(asked, CURRENT, [*reversed(ARCHIVE), CURRENT]) == found, "order does not matter"


def test_a_tag_pushed_as_latest_is_never_looked_for() -> None:
    assert skills.resolve("latest", CURRENT, [Version("skv-9", D, "latest")]) == CURRENT


@pytest.mark.parametrize("tag", ["", "v1", "1.0.0-rc.1", "latest", "a" * 63, "main_2"])
def test_a_tag_may_be(tag: str) -> None:
    skills.check_tag(tag)


@pytest.mark.parametrize("tag", ["a b", "a/b", "ü", "v1\n", A, A.upper(), "v:1"])
def test_a_tag_may_not_be(tag: str) -> None:
    with pytest.raises(InvalidRequestError, match="tag"):
        skills.check_tag(tag)


def test_an_id_made_by_a_late_clock_still_sorts_after_the_one_before() -> None:
    early, late = make_id("skv", 5 << 80), make_id("skv", (7 << 80) + 31)
    assert skills.later_id(late, early) == late
    assert skills.later_id(early, late) == make_id("skv", (7 << 80) + 32) > late
    assert skills.later_id(early, "") == early


@pytest.mark.parametrize(
    ("org", "key"),
    [
        ("acme", f"skills/acme/pdf/{A}.zip"),
        ("", f"skills/_/pdf/{A}.zip"),
        ("a.b-C_9", f"skills/a.b-C_9/pdf/{A}.zip"),
    ],
)
def test_the_key_of_an_artifact(org: str, key: str) -> None:
    assert skills.artifact_key(org, "pdf", A) == key
    assert skills.hash_in_key(key) == A


@pytest.mark.parametrize("org", ["..", "a/b", "_", "Ünï", "x" * 500, "a b", ".hidden", "-"])
def test_an_organization_never_leaves_its_place_in_a_key(org: str) -> None:
    key = skills.artifact_key(org, "pdf", A)
    assert skills.hash_in_key(key) == A
    assert key.split("/")[1].startswith("_x")
    assert len(key.split("/")) == 4


def test_the_key_of_the_reference_is_known() -> None:
    assert skills.hash_in_key(f"skills/{B}.zip") == B


@pytest.mark.parametrize(
    "key",
    [
        "",
        "skills/../../etc/passwd",
        f"skills/acme/../{A}.zip",
        f"skills/../pdf/{A}.zip",
        f"/skills/{A}.zip",
        f"skills//{A}.zip",
        f"skills/acme/pdf/{A}.zip\n",
        f"skills/acme/pdf/{A}.zip/../../x",
        f"skills/acme/pdf/{A[:63]}.zip",
        f"skills/acme/{A}.zip",
        f"outputs/acme/pdf/{A}.zip",
        f"skills/.hidden/pdf/{A}.zip",
        f"skills/ac\\me/pdf/{A}.zip",
        "skills/acme/pdf/" + "A" * 64 + ".zip",
    ],
)
def test_no_other_key_is_one_of_a_skill(key: str) -> None:
    with pytest.raises(InvalidRequestError, match="not the key of a skill"):
        skills.hash_in_key(key)


# -- SKILL.md ---------------------------------------------------------------------------------------


def front(text: str, body: str = "# Do\n") -> str:
    return f"---\n{text}\n---\n{body}"


def test_front_matter_is_read() -> None:
    read = skills.read_skill_md(
        front(
            "name: pdf-tools\ndescription: >\n  Reads PDFs.\n  Use for PDFs.\nlicense: MIT\n"
            'compatibility: needs pdftotext\nmetadata:\n  author: me\n  version: "1.0"\n'
            "allowed-tools: execute read_file"
        )
    )
    assert read.front_matter == skills.FrontMatter(
        name="pdf-tools",
        description="Reads PDFs. Use for PDFs.",
        license="MIT",
        compatibility="needs pdftotext",
        metadata={"author": "me", "version": "1.0"},
        allowed_tools=("execute", "read_file"),
    )
    assert (read.body, read.warnings) == ("# Do\n", ())


@pytest.mark.parametrize("text", ["# Just text\n", "---- four\n", "text\n---\nname: x\n---\n"])
def test_front_matter_is_not_needed(text: str) -> None:
    read = skills.read_skill_md(text)
    assert (read.front_matter, read.body) == (None, text)
    assert read.warnings == ("SKILL.md has no front matter with name and description.",)


def test_lines_may_end_as_on_windows() -> None:
    read = skills.read_skill_md(front("name: a\ndescription: b").replace("\n", "\r\n"))
    assert read.front_matter == skills.FrontMatter("a", "b")


WRONG = [
    ("description: x", "name is missing"),
    ("name: a", "description is missing"),
    ("name: a\ndescription: ''", "description is empty"),
    ("name: a\ndescription: '  '", "description is empty"),
    ("name: 5\ndescription: x", "name must be text"),
    ("name: [a]\ndescription: x", "name must be text"),
    (f"name: {'a' * 65}\ndescription: x", "65 characters; 64"),
    (f"name: a\ndescription: {'x' * 1025}", "1025 characters; 1024"),
    (f"name: a\ndescription: x\ncompatibility: {'x' * 501}", "501 characters; 500"),
    ("name: a\ndescription: x\ncompatibility: ''", "compatibility is empty"),
    ("name: Pdf\ndescription: x", "lower case"),
    ("name: pdf tools\ndescription: x", "letters, digits and hyphens"),
    ("name: pdf_tools\ndescription: x", "letters, digits and hyphens"),
    ("name: ../pdf\ndescription: x", "letters, digits and hyphens"),
    ("name: -pdf\ndescription: x", "begin or end"),
    ("name: pdf-\ndescription: x", "begin or end"),
    ("name: a--b\ndescription: x", "two hyphens"),
    ("name: a\ndescription: x\nmetadata: text", "metadata must be"),
    ("name: a\ndescription: x\nmetadata: {a: [1]}", r"metadata.a must be text"),
    ("name: a\ndescription: x\nallowed-tools: {a: 1}", "allowed-tools must be"),
    ("name: a\ndescription: x\nlicense: 5", "license must be text"),
    ("name: a\nname: b\ndescription: x", "not YAML"),
    ("name: a\ndescription: a: b: c", "not YAML, line 3"),
    ("name: [", "not YAML"),
    ("- a\n- b", "`name: value` lines"),
    ("just text", "`name: value` lines"),
    ("", "`name: value` lines"),
    ("name: a\ndescription: !!python/object/apply:os.system [id]", "not YAML"),
    ("a: " + "[" * 20_000, "nested too deeply|not YAML"),
    ("x: " + "y" * 70_000, "over 65536 bytes"),
]


@pytest.mark.parametrize(("text", "problem"), WRONG, ids=[row[1] for row in WRONG])
def test_wrong_front_matter_is_refused_with_the_field(text: str, problem: str) -> None:
    with pytest.raises(ArtifactError, match=f"^SKILL.md: .*({problem})"):
        skills.read_skill_md(front(text))


def test_front_matter_that_never_ends_is_refused() -> None:
    with pytest.raises(ArtifactError, match="no closing"):
        skills.read_skill_md("---\nname: a\ndescription: b\n# Title\n")


def test_aliases_that_would_grow_to_gigabytes_cost_nothing() -> None:
    laughs = "\n".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]" for i in range(9)
    )
    text = front(f"name: a\ndescription: x\nmetadata:\n  q: z\na: &a [lol]\n{laughs}")
    assert skills.read_skill_md(text).front_matter == skills.FrontMatter("a", "x", metadata={"q": "z"})


def test_what_the_specification_does_not_know_is_a_warning() -> None:
    read = skills.read_skill_md(
        front(
            "name: a\ndescription: x\nversion: 2\nmodel: big\nmetadata: {n: 1.5}\nallowed-tools: [a, b]", ""
        )
    )
    assert read.front_matter is not None
    assert read.front_matter.metadata == {"n": "1.5"}
    assert read.front_matter.allowed_tools == ("a", "b")
    assert [w.split(".")[0] for w in read.warnings] == [
        "The Agent Skills specification does not know: model, version",
        "metadata",
        "allowed-tools should be one text, its names separated by spaces",
        "SKILL",
    ]


# -- the prompt -------------------------------------------------------------------------------------

PDF = PromptSkill("pdf", A, "---\nname: pdf\ndescription: Reads PDFs.\n---\n# PDF\n", "Reads PDFs.")
CSV = PromptSkill("csv", B, "# CSV\n")


def test_the_prompt_tells_name_location_and_the_whole_skill_md() -> None:
    section = prompt_section([PDF, CSV])
    heading, introduction, rest = section.split("\n\n", 2)
    assert heading == "## Available Skills"
    assert introduction and "\n" not in introduction
    assert rest == (
        f"### SKILL: pdf\nLOCATION: /bin/skills/{A}/\n\n"
        "---\nname: pdf\ndescription: Reads PDFs.\n---\n# PDF\n\n"
        f"### SKILL: csv\nLOCATION: /bin/skills/{B}/\n\n# CSV\n"
    )


def test_progressive_disclosure_tells_the_description_alone() -> None:
    section = prompt_section([PDF, CSV], SkillDisclosure.SKILL_DISCLOSURE_PROGRESSIVE)
    assert f"### SKILL: pdf\nLOCATION: /bin/skills/{A}/\n\nReads PDFs.\n\n### SKILL: csv" in section
    assert section.endswith("# CSV\n"), "without a description the agent could not know what it is for"


def test_a_skill_without_files_has_no_location() -> None:
    section = prompt_section([PromptSkill("pdf", "", "# PDF\n", "Reads PDFs.")])
    assert "LOCATION" not in section.split("### SKILL", 1)[1]
    assert "not available in this run" in section
    assert section.endswith("# PDF\n")


def test_without_skills_instructions_stay_as_they_are() -> None:
    assert prompt_section([]) == ""
    assert with_skills("Be kind.\n", "") == "Be kind.\n"
    assert with_skills("Be kind.\n", prompt_section([CSV])).startswith("Be kind.\n\n## Available Skills\n\n")
