"""One engine at a time takes a device's memory, whatever its process and however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from udfs.wire import turns
from udfs.wire.turns import take_turn

_HOLDS = """
import sys
from pathlib import Path
from udfs.wire import turns

turns._PLACE = Path(sys.argv[1])
with turns.take_turn("GPU-1", wait_s=60):
    print("holds", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(turns, "_PLACE", tmp_path)
    return tmp_path


@pytest.fixture
def holder(place: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, whose TMPDIR is another too; it has the turn until it ends or reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(place / "elsewhere")},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("ends", ["by itself", "killed"])
def test_a_turn_begins_when_the_one_before_ends(
    holder: subprocess.Popen[str], ends: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            holder.kill() if ends == "killed" else holder.communicate("\n")
            holder.wait()

    monkeypatch.setattr(turns.time, "sleep", pause)
    with take_turn("GPU-1", wait_s=60):
        assert len(waited) == 2
    told = capsys.readouterr().err
    assert f"process {holder.pid}" in told
    assert "not waited for" not in told


def test_a_wait_for_a_turn_ends_and_is_told(holder: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]) -> None:
    with take_turn("GPU-1", wait_s=0.3):
        pass
    assert "is not waited for any longer" in capsys.readouterr().err


def test_another_device_and_a_cpu_wait_for_nobody(
    holder: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for device in ("GPU-2", None):
        with take_turn(device, wait_s=60):
            pass
    assert capsys.readouterr().err == ""


def test_without_a_place_for_locks_there_are_no_turns(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(turns, "_PLACE", place / "missing")
    with take_turn("GPU-1", wait_s=60):
        pass
    assert "no turns" in capsys.readouterr().err
