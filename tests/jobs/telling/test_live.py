"""How a run stands, while it goes and when it has ended."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import Interrupted, JobError
from jobs.increments.plan import Plan
from jobs.increments.scoring import Run
from jobs.job_file import load_settings
from jobs.run import retry, score
from jobs.telling import live as live_module
from jobs.telling.engines import EngineLook
from jobs.telling.live import Live, LiveRun, Outlet
from tests.conftest import ROOT
from tests.outputs import LaidOut

WriteJob = Callable[..., Path]


class Kept(Outlet):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.seen: list[Live] = []

    def show(self, live: Live) -> None:
        self.seen.append(live)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "_EVERY_S", 0.05)


def test_a_run_is_shown_as_it_goes_and_its_end_is_kept(
    spark: Any, write_job: WriteJob, tmp_path: Path, often: None
) -> None:
    settings = load_settings(write_job())
    report = score(settings, outlets=[kept := Kept()])
    last = kept.seen[-1]
    assert {live.status for live in kept.seen[:-1]} == {"running"}
    assert (last.status, last.increments, last.counts.rows) == ("completed", 1, 3)
    assert last.counts.failed_by_code == {"empty_input": 1}
    assert last.run_id == report.run_id
    assert [live.beat for live in kept.seen] == list(range(1, len(kept.seen) + 1))
    assert any(live.increment == 0 and live.increment_rows == 3 for live in kept.seen)
    assert last.left_bytes == 0
    assert any(live.left_bytes for live in kept.seen)
    assert json.loads((tmp_path / "out/_gristmill/live.json").read_text())["status"] == "completed"
    assert last.engines is not None  # they are on this machine
    assert last.engines.running >= 1
    again = score(settings, outlets=[nothing := Kept()])
    assert again.rows == 0
    assert [live.status for live in nothing.seen] == ["completed"]  # found out without Spark
    assert retry(settings, outlets=[retried := Kept()]).command == "retry"
    assert retried.seen[-1].command == "retry"


def test_a_live_file_is_no_change_of_the_output(spark: Any, write_job: WriteJob, tmp_path: Path) -> None:
    settings = load_settings(write_job())
    score(settings)
    (tmp_path / "out/_gristmill/live.json").write_text("{}")
    score(settings, outlets=[kept := Kept()])
    assert kept.seen[-1].beat == 0  # it ended before Spark was asked


def test_a_run_that_fails_says_so(
    spark: Any, write_job: WriteJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise JobError("no")

    monkeypatch.setattr("jobs.run.score_stream", fail)
    with pytest.raises(JobError):
        score(load_settings(write_job()), outlets=[kept := Kept()])
    assert kept.seen[-1].status == "failed"


def test_what_cannot_be_looked_at_ends_no_run(
    spark: Any, write_job: WriteJob, monkeypatch: pytest.MonkeyPatch, often: None
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("the store does not answer")

    monkeypatch.setattr(LiveRun, "_look_around", fail)
    assert score(load_settings(write_job())).succeeded == 2


def test_engines_that_were_there_before_are_no_starts_of_the_run(spark: Any, write_job: WriteJob) -> None:
    settings = load_settings(write_job())
    score(settings)
    time.sleep(1.5)  # for the engine to tell of it
    look = EngineLook()
    told = look.look()
    assert told is not None
    assert (told.starts, told.deaths, told.items) == (0, 0, 0)


class NoSpark:
    """A session that tells nothing of its tasks."""


def _look_after(path: Path, **about: Any) -> tuple[LiveRun, Kept]:
    settings = load_settings(ROOT / "conf/embeddings.yaml", [f"output.path={path}"])
    run = Run("20261120T220000Z-aaaaaa", datetime.now(UTC), home="_gristmill")
    output, kept = run.output(settings), Kept()
    made = LiveRun(NoSpark(), settings, run, output, command="score", outlets=[kept], every_s=60, **about)  # type: ignore[arg-type]
    return made, kept


def test_what_is_left_is_told_by_the_rate_of_what_is_committed(tmp_path: Path) -> None:
    made = LaidOut(tmp_path / "out")
    live, kept = _look_after(made.path)
    live.expects(5000)
    live._look()
    assert kept.seen[-1].seconds_left is None  # nothing tells
    assert kept.seen[-1].left_bytes == 5000
    made.increment(0, [5] * 10, seconds=20.0)  # of 1,000 bytes
    made.increment(1, [5] * 10, seconds=50.0, run_id="another run")
    live.begins(2, Plan(30, 4))
    live._look()
    seen = kept.seen[-1]
    assert (seen.increments, seen.counts.rows, seen.scoring_s) == (1, 10, 20.0)
    assert (seen.increment, seen.increment_rows, seen.increment_done) == (2, 30, None)
    assert seen.left_bytes == 4000
    assert seen.seconds_left == pytest.approx(80.0, abs=1.0)
    assert Live.from_json(json.loads((made.path / "_gristmill/live.json").read_text())) == seen


def test_one_increment_tells_what_is_left_by_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live, kept = _look_after(LaidOut(tmp_path / "out").path)
    monkeypatch.setattr(live_module, "share_done", lambda *_: 0.25)
    live.begins(0, Plan(100, 8))
    live._plan = (0, Plan(100, 8), time.monotonic() - 10)
    live._look()
    assert kept.seen[-1].seconds_left == pytest.approx(30.0, abs=1.0)
    monkeypatch.setattr(live_module, "share_done", lambda *_: 0.0)
    live._look()
    assert kept.seen[-1].seconds_left is None


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "completed"), (JobError("no"), "failed"), (Interrupted("stop"), "interrupted"), (ValueError(), "failed")],
)
def test_a_run_without_a_report_says_how_it_ended(error: Exception | None, status: str, tmp_path: Path) -> None:
    live, kept = _look_after(LaidOut(tmp_path / "out").path)
    with contextlib.suppress(JobError, ValueError), live:
        if error:
            raise error
    assert kept.seen[-1].status == status
    assert kept.seen[-1].seconds_left is None


def test_a_look_that_never_ends_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live, _ = _look_after(LaidOut(tmp_path / "out").path)
    monkeypatch.setattr(live_module, "_JOIN_S", 0.1)
    monkeypatch.setattr(live, "_look_around", lambda: time.sleep(30))
    began = time.monotonic()
    with live:
        pass
    assert time.monotonic() - began < 5
