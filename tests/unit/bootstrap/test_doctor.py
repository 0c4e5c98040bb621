from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent_runner.bootstrap.doctor import Row, checks
from agent_runner.settings import Settings


def rows(**given: object) -> dict[str, Row]:
    return {row[0]: row for row in checks(Settings(model="script:demo", **given))}  # type: ignore[arg-type]


def test_what_was_not_asked_for_and_is_not_here_neither_works_nor_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAYTONA_API_KEY", raising=False)

    assert rows(data_dir=tmp_path)["sandbox daytona"][1] is None
    assert rows(data_dir=tmp_path, sandbox="daytona")["sandbox daytona"][1] is False


def test_everything_is_told_where_the_data_directory_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    told = rows(data_dir=tmp_path / "file")

    assert told["data directory"][1] is False
    assert told["sandbox local"][1] is False
    assert told["model"][1] is True


def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 << 20))

    _, works, told = rows(data_dir=tmp_path)["data directory"]

    assert works is False
    assert "0.0 GiB free. Make room." in told
