"""What scoring has saved, estimated by some texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.errors import JobError
from jobs.increments import comparing
from jobs.increments.comparing import LEAST_S, budget_of, estimate
from jobs.job_file import load_settings
from jobs.run import score

RANDOM = np.random.default_rng(7)


@pytest.mark.parametrize(
    ("scoring_s", "left_s", "budget_s"),
    [
        (LEAST_S - 1, None, None),  # short runs would notice
        (LEAST_S, None, 2.0),
        (3600.0, None, 18.0),  # half a percent
        (1e6, None, 30.0),
        (3600.0, 60.0, None),  # the deadline is near
        (3600.0, 600.0, 18.0),
    ],
)
def test_a_comparison_has_a_small_part_of_the_time(
    scoring_s: float, left_s: float | None, budget_s: float | None
) -> None:
    assert budget_of(scoring_s, left_s) == budget_s


def _draw(count: int) -> list[tuple[int, float]]:
    """Texts that take 2 ms and 0.1 ms a token, more or less."""
    tokens = RANDOM.integers(5, 200, count)
    return [(int(n), float((0.002 + 0.0001 * n) * RANDOM.lognormal(0, 0.2))) for n in tokens]


def test_the_interval_holds_what_all_texts_would_have_taken_as_often_as_it_says() -> None:
    whole = _draw(20_000)
    tokens, seconds = sum(n for n, _ in whole), sum(s for _, s in whole)
    for count in (5, 40):
        held = 0
        for _ in range(400):
            chosen = [whole[i] for i in RANDOM.integers(0, len(whole), count)]
            made = estimate([chosen], tokens=tokens, scoring_s=10.0)
            assert made is not None
            held += made.alone_low_s <= seconds <= made.alone_high_s
        assert held / 400 > 0.9


def test_several_engines_have_each_their_part_and_money_is_by_machine() -> None:
    timed = [[(10, 0.01)] * 5, [(10, 0.01)] * 5]
    made = estimate(timed, tokens=1_000_000, scoring_s=100.0, usd_per_hour=3.6, hosts=2)
    assert made is not None
    assert (made.texts, made.engines) == (10, 2)
    assert made.alone_s == made.alone_low_s == made.alone_high_s == pytest.approx(1000.0)
    assert made.times == pytest.approx(1000 / 2 / 100)
    assert made.alone_usd == pytest.approx(3.6 / 3600 * 2 * 500)


def test_engines_that_have_not_answered_had_their_part_of_the_work_too() -> None:
    timed = [[(10, 0.01)] * 5]
    made = estimate(timed, tokens=1_000_000, scoring_s=100.0, usd_per_hour=3.6, hosts=2, engines=2)
    assert made is not None
    assert (made.engines, made.times, made.alone_usd) == (2, pytest.approx(5.0), pytest.approx(1.0))


@pytest.mark.parametrize("timed", [[], [[(9, 0.1)] * 2], [[]]])
def test_too_few_texts_give_no_figure(timed: list[list[tuple[int, float]]]) -> None:
    assert estimate(timed, tokens=100, scoring_s=10.0) is None


def test_nothing_scored_gives_no_figure() -> None:
    assert estimate([[(9, 0.1)] * 9], tokens=0, scoring_s=10.0) is None


@pytest.fixture
def job(write_job: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of 60 texts, which is long enough to be compared."""
    lines = [json.dumps({"id": n, "text": "red tea " * (1 + n % 20) + str(n)}) for n in range(60)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(comparing, "LEAST_S", 0.0)
    return write_job(cost={"usd_per_hour": 1.0})


def test_a_run_measures_some_of_its_texts_and_changes_nothing(spark: Any, job: Path, tmp_path: Path) -> None:
    report = score(load_settings(job))
    assert report.status == "completed"
    assert report.compared is not None
    assert report.compared.texts >= 3
    assert report.compared.times_low <= report.compared.times <= report.compared.times_high
    assert report.compared.alone_usd is not None
    (kept,) = (tmp_path / "out/_gristmill/runs").glob("*.json")
    assert json.loads(kept.read_text())["compared"]["texts"] == report.compared.texts
    without = score(load_settings(job, ["cost.compare=false"]), overwrite=True)
    assert without.compared is None
    assert (without.rows, without.input_tokens, without.scored_rows) == (60, report.input_tokens, report.scored_rows)


@pytest.mark.parametrize("error", [JobError("no"), OSError("gone"), RuntimeError("odd")])
def test_what_keeps_it_from_being_measured_is_no_matter_of_the_run(
    error: Exception, spark: Any, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(comparing, "_ask", fail)
    report = score(load_settings(job))
    assert (report.status, report.succeeded, report.compared) == ("completed", 60, None)


def test_engines_that_do_not_answer_hold_nobody_up(spark: Any, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from pyspark.sql import functions as F

    monkeypatch.setattr(comparing, "_BUDGET_S", 0.3)
    monkeypatch.setattr(comparing, "make_comparer", lambda *_, **__: F.udf(lambda _: time.sleep(6), "string"))
    began = time.monotonic()
    report = score(load_settings(job))
    assert report.compared is None
    assert time.monotonic() - began < 25
