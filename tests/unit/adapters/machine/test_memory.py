from __future__ import annotations

from pathlib import Path

import pytest

from agent_runner.adapters.machine.memory import _used_of_group, used_share


def group(folder: Path, limit: str, used: int, cache: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")
    return folder


def test_memory_is_used_here() -> None:
    assert 0 < used_share() < 1


def test_a_group_counts_what_the_kernel_would_not_give_back(tmp_path: Path) -> None:
    assert _used_of_group(group(tmp_path / "pod", "1000", 900, cache=400), tmp_path) == pytest.approx(0.5)


def test_the_fullest_group_above_counts(tmp_path: Path) -> None:
    group(tmp_path / "slice", "1000", 800)
    inner = group(tmp_path / "slice" / "pod", "1000", 100)
    assert _used_of_group(inner, tmp_path) == pytest.approx(0.8)


@pytest.mark.parametrize("limit", ["max", "0", "nonsense"])
def test_a_group_without_a_limit_is_never_full(tmp_path: Path, limit: str) -> None:
    assert _used_of_group(group(tmp_path / "pod", limit, 900), tmp_path) == 0
    assert _used_of_group(tmp_path / "not there", tmp_path) == 0
    assert _used_of_group(None, tmp_path) == 0
