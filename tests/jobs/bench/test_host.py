from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from jobs.bench.host import _make_figures, _Round, _Run, run_host_bench
from jobs.bench.processes import Kind, Ran
from jobs.errors import JobError, UserError
from jobs.job_file import load_settings
from tests.conftest import MINILM, ROOT

WriteJob = Callable[..., Path]


def _ran(seconds: float, rows: int, **cpu: float) -> _Run:
    kinds: dict[Kind, float] = {"jvm": 0.0, "workers": 0.0, "engine": 0.0, "driver": 0.0}
    return _Run(Ran(seconds, {**kinds, **cpu}, 0), rows, rows * 100)  # type: ignore[typeddict-item]


def test_the_start_is_subtracted_and_the_first_checkout_is_the_measure() -> None:
    start = _ran(10.0, 100, jvm=8.0, workers=1.0)
    ours, theirs = (
        [_Round(start, _ran(seconds, 10_100, jvm=8.0 + jvm, workers=2.0, engine=0.5))]
        for seconds, jvm in ((14.0, 2.0), (18.0, 5.0))
    )
    first, other = (_make_figures(Path(name), found, ours) for name, found in (("a", ours), ("b", theirs)))
    assert (first.rows_per_s, first.tokens_per_s) == (2_500, 250_000)
    assert first.cpu_s == {"jvm": 2.0, "workers": 1.0, "engine": 0.5, "driver": 0.0}
    assert (first.host_cpu_s, first.ratio, first.rate_ratio) == (3.0, 1.0, 1.0)
    assert (other.host_cpu_s, other.ratio, other.rate_ratio) == (6.0, 2.0, 0.5)
    assert (first.start_s, first.start_cpu_s["jvm"]) == (10.0, 8.0)


def test_what_is_no_checkout_is_refused(write_job: WriteJob, tmp_path: Path) -> None:
    settings = load_settings(write_job(score={"model": MINILM}))
    asked = {"rows": 10, "rounds": 1, "json_path": None, "console": Console(quiet=True)}
    with pytest.raises(UserError, match="no checkout of gristmill"):
        run_host_bench(settings, texts="short", against=tmp_path, **asked)
    with pytest.raises(UserError, match="choose one of docstrings, short"):
        run_host_bench(settings, texts="poems", against=None, **asked)


@pytest.mark.slow
def test_the_host_is_measured_by_whole_jobs_in_turn_with_another_checkout(write_job: WriteJob, tmp_path: Path) -> None:
    settings = load_settings(write_job(score={"model": MINILM, "overflow": "truncate"}))
    told, console = tmp_path / "figures.json", Console(record=True, width=160)
    run_host_bench(settings, rows=200, rounds=1, texts="short", against=ROOT, json_path=told, console=console)
    first, other = json.loads(told.read_text())
    assert first["rows"] == other["rows"] == 200
    assert first["tokens"] == other["tokens"] > 1_000
    assert all(first["start_cpu_s"][kind] > 0 for kind in ("jvm", "workers", "engine", "driver"))
    assert "jvm and workers, times the first" in console.export_text()


@pytest.mark.long
def test_a_job_that_fails_says_why(write_job: WriteJob) -> None:
    settings = load_settings(write_job(score={"model": MINILM, "max_tokens": 100_000}))
    with pytest.raises(JobError, match="max_tokens"):
        run_host_bench(
            settings, rows=10, rounds=1, texts="short", against=None, json_path=None, console=Console(quiet=True)
        )
