from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.processes import await_end
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


def test_a_process_is_known_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    known = executor.executor_of()
    began = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: began(process) + 3600)
    assert executor.is_running(known.pid, known.started)
    assert executor.executor_of() == known
    monkeypatch.setattr(executor, "_BOOT", Path("/nowhere"))  # a sandbox
    known = executor.executor_of()
    monkeypatch.setattr(psutil.Process, "create_time", began)
    assert executor.is_running(known.pid, known.started)


def test_a_later_process_with_the_same_number_is_another_one() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    told = executor.executor_of(child.pid)
    assert executor.is_running(child.pid, told.started)
    assert not executor.is_running(child.pid, executor.executor_of().started)
    child.kill()
    await_end(psutil.Process(child.pid))
    assert not executor.is_running(child.pid, told.started)  # nobody has reaped it yet
    child.wait()
    assert not executor.is_running(child.pid, told.started)
