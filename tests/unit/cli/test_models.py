"""`model …`: what is told of weights that are not here, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

from unit.cli.conftest import Command


def test_weights_that_are_not_here_are_told(offline: Command) -> None:
    listed = json.loads(offline("model", "list", "-o", "json").out)
    assert [(m["name"], m["pulled"], m["presentBytes"]) for m in listed] == [
        ("local:qwen2.5-coder-1.5b", False, 0)
    ]
    assert "not pulled" in offline("model", "list").out
    status = offline("model", "status")
    assert status.code == 1 and "0 of 1,117 MB" in status.out


def test_a_file_that_is_another_or_not_there_is_refused(offline: Command, tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    other = offline("model", "pull", "--from", "other.gguf")
    assert other.code != 0 and "another file" in other.err
    missing = offline("model", "pull", "--from", "missing.gguf")
    assert missing.code != 0 and "missing.gguf" in missing.err
