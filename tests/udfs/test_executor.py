from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from udfs import executor


def _contain(folder: Path, limit: str) -> None:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text("900\n")
    (folder / "memory.stat").write_text("anon 300\ninactive_file 500\nactive_file 100\n")


@pytest.mark.parametrize(("limit", "free"), [("1000", 600), ("800", 400), ("300", 0)])
def test_files_that_a_container_has_read_are_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, free: int
) -> None:
    monkeypatch.setattr(executor, "_MEMORY", tmp_path)
    _contain(tmp_path, limit)
    assert executor.available_memory() == free


def test_without_a_limit_the_machine_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_MEMORY", tmp_path)
    for spoil in (lambda: None, lambda: _contain(tmp_path, "max")):
        spoil()
        assert executor.available_memory() == pytest.approx(psutil.virtual_memory().available, rel=0.2)
