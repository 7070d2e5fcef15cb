"""`gristmill watch`: a run as it looks from another terminal."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from jobs.errors import OutputError
from jobs.telling.following import Follower, follow
from jobs.telling.live import Live
from tests.live_runs import make_live
from tests.outputs import LaidOut
from udfs.executor import start_of


def _here(**told: object) -> Live:
    process = start_of(psutil.Process())
    return make_live(host=platform.node(), pid=os.getpid(), process=process, **told)


def _put(path: Path, live: Live) -> None:
    (path / "_gristmill/live.json").write_text(json.dumps(live.as_dict()))


def _watch(path: Path, *steps: Callable[[], None], terminal: bool = False) -> str:
    """What is shown while these things happen, one between two looks each."""
    console = Console(file=StringIO(), force_terminal=terminal, width=200)
    left = list(steps)
    follow(str(path), console, sleep=lambda _: left.pop(0)())
    assert not left
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_is_followed_until_it_ends(terminal: bool, tmp_path: Path) -> None:
    made = LaidOut(tmp_path)
    live = _here(increments=0, increment=0)
    _put(tmp_path, live)

    def commit() -> None:
        made.increment(0, [5, 6, 7])
        _put(tmp_path, replace(live, increments=1, increment=1, beat=4))

    shown = _watch(tmp_path, commit, lambda: _put(tmp_path, replace(live, status="completed")), terminal=terminal)
    assert f"run {live.run_id} has ended: completed" in shown
    assert "290 succeeded" in shown
    assert "25%" in shown
    if not terminal:
        assert len(shown.splitlines()) == 3  # a line for what was there, one for the commit, one for the end


def test_a_driver_that_was_killed_is_told(tmp_path: Path) -> None:
    LaidOut(tmp_path)
    _put(tmp_path, replace(_here(), process="another boot"))
    shown = _watch(tmp_path)
    assert "nobody runs in" in shown
    assert "its driver is gone" in shown


def test_an_output_where_no_run_left_a_sign_and_no_output_are_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no output of gristmill"):
        _watch(tmp_path)
    LaidOut(tmp_path).increment(0, [5])
    assert "nobody runs in" in _watch(tmp_path)


def test_a_run_that_begins_while_it_is_waited_for_is_followed(tmp_path: Path) -> None:
    terminal, path = StringIO(), tmp_path / "out"
    waits = [0]

    def begin(_: float) -> None:
        waits[0] += 1
        if waits[0] == 2:
            LaidOut(path)
            _put(path, replace(_here(), status="completed"))
        if waits[0] == 4:
            _put(path, replace(_here(), run_id="second"))
        if waits[0] == 6:
            _put(path, replace(_here(), run_id="second", status="completed"))

    follow(str(path), Console(file=terminal, width=200), wait_s=30, every_s=2, sleep=begin)
    shown = terminal.getvalue()
    assert "waiting 30 s for a run to begin" in shown
    assert "run second has ended: completed" in shown
    assert waits[0] == 6
    with pytest.raises(OutputError, match="no output of gristmill"):
        follow(str(tmp_path / "none"), Console(file=terminal), wait_s=30, every_s=2, sleep=lambda _: None)


def test_a_driver_elsewhere_is_known_by_its_beat(tmp_path: Path) -> None:
    LaidOut(tmp_path)
    now = [0.0]
    follower = Follower(str(tmp_path), clock=lambda: now[0])
    live = make_live()
    assert follower.works(live) is None  # who knows
    now[0] = 30
    assert follower.works(live) is None
    assert follower.works(replace(live, beat=4)) is True
    now[0] = 60
    assert follower.works(replace(live, beat=4)) is None
    now[0] = 95
    assert follower.works(replace(live, beat=4)) is False
    assert follower.works(replace(live, status="expired")) is False


def test_each_mark_is_read_once_and_a_job_that_starts_afresh_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.folder import Folder

    made = LaidOut(tmp_path)
    made.increment(0, [5])
    read: list[str] = []
    monkeypatch.setattr(
        Folder, "read_all_json", lambda self, names: read.extend(names) or [self.find_json(name) for name in names]
    )
    follower = Follower(str(tmp_path))
    _, found = follower.look()
    made.increment(1, [6, 6])
    follower.look()
    _, found = follower.look()
    assert [made.number for made in found] == [0, 1]
    assert read == ["_gristmill/marks/increment=000000.json", "_gristmill/marks/increment=000001.json"]
    job = json.loads((tmp_path / "_gristmill/job.json").read_text())
    (tmp_path / "_gristmill/job-new/marks").mkdir(parents=True)
    (tmp_path / "_gristmill/job.json").write_text(json.dumps({**job, "home": "_gristmill/job-new"}))
    assert follower.look()[1] == []


def test_a_live_file_of_a_later_gristmill_is_read(tmp_path: Path) -> None:
    told = {**make_live().as_dict(), "something": "new"}
    assert Live.from_json(json.loads(json.dumps(told))) == make_live()
