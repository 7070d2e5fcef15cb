"""How a run ends, and what is told and kept of it; no Spark is needed for that."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.errors import BusyError, DeadlineReached, Interrupted, JobError, OutputError, TooManyFailed
from jobs.increments.scoring import Run
from jobs.job import Job, Start
from jobs.job_file import load_settings
from jobs.output.committed import Committed
from jobs.output.directory import Output
from jobs.output.lock import Claim
from jobs.preflight import check_model
from jobs.spark.interrupts import Stop
from jobs.telling.result import ResultFile

WriteJob = Callable[..., Path]


@pytest.fixture
def make_job(write_job: WriteJob) -> Callable[..., Job]:
    def make(claim: Claim | None = None) -> Job:
        settings = load_settings(write_job())
        run, spark = Run("run", datetime.now(UTC), claim=claim or Claim()), None
        output = Output(settings)
        output.begin()
        start = Start("retry", settings, run, output, Console(stderr=True), Stop(), ResultFile(None))
        return Job(start, spark, run)  # type: ignore[arg-type]

    return make


def test_all_of_a_run_takes_the_commit_that_the_driver_has(
    write_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.preflight.pin", lambda spec: replace(spec, revision="c0ffee"))
    settings = load_settings(write_job())
    assert check_model(settings).score.revision == "c0ffee"
    assert settings.score.revision is None


def _commit(job: Job, *, expired: int = 0) -> None:
    codes = {"expired": expired} if expired else {}
    counts = Committed(rows=5, succeeded=5 - expired, failed=expired, failed_by_code=codes)
    job.output.folder.write_json("draft/rows.json", 0)
    job.output.commit("draft", 0, counts=counts, run_id="run")


def _kept(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "out/_gristmill/runs/run.json").read_text())


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "completed"), (DeadlineReached("late"), "expired"), (TooManyFailed("bad"), "failed")],
)
def test_a_run_that_ends_by_itself_is_reported(
    make_job: Callable[..., Job], tmp_path: Path, error: JobError | None, status: str
) -> None:
    job = make_job()

    def work() -> None:
        _commit(job)
        job.warn("mind the gap")
        if error:
            raise error

    report = job.carry_out(work, left=lambda: {"files": 2})
    assert (report.command, report.status, report.rows, report.left) == ("retry", status, 5, {"files": 2})
    assert (report.warnings, report.error) == (["mind the gap"], str(error) if error else None)
    assert _kept(tmp_path) == report.as_dict()


def test_rows_that_came_too_late_are_left(make_job: Callable[..., Job]) -> None:
    job = make_job()
    report = job.carry_out(lambda: _commit(job, expired=2))
    assert (report.status, report.left) == ("expired", {"expired_rows": 2})


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (JobError("Spark gave up"), "Spark gave up; committed: 1 increment with 5 rows; the same command goes on"),
        (OutputError("it is gone"), "it is gone$"),
    ],
)
def test_an_error_is_kept_and_raised_and_says_what_stays(
    make_job: Callable[..., Job], tmp_path: Path, error: JobError, told: str
) -> None:
    job = make_job()

    def work() -> None:
        _commit(job)
        raise error

    with pytest.raises(type(error), match=told):
        job.carry_out(work)
    assert _kept(tmp_path)["status"] == "failed"


@pytest.mark.parametrize("error", [None, JobError("cancelled"), TooManyFailed("bad")])
def test_a_run_that_was_told_to_end_is_interrupted_whatever_that_broke(
    make_job: Callable[..., Job], tmp_path: Path, error: JobError | None
) -> None:
    job = make_job()

    def work() -> None:
        job.stop.set(signal.SIGTERM)
        if error:
            raise error

    with pytest.raises(Interrupted, match=r"^interrupted; nothing of this run was committed") as caught:
        job.carry_out(work)
    assert (caught.value.exit_code, _kept(tmp_path)["status"]) == (143, "interrupted")


def test_what_is_cancelled_because_another_driver_took_over_says_so(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.output.lock._PATIENCE_S", 0)
    job = make_job(Claim(str(tmp_path / "out"), "lock", "me"))
    job.output.folder.write_json("lock/other.json", {})

    def work() -> None:
        raise JobError("cancelled")

    with pytest.raises(BusyError, match="was taken over"):
        job.carry_out(work)
