from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from jobs.bench import side_by_side as bench
from jobs.bench.contenders import Contender
from jobs.job_file import load_settings
from tests.models import make_encoder

WriteJob = Callable[..., Path]


@pytest.mark.long
def test_a_job_is_compared_with_what_people_use_instead(write_job: WriteJob, tmp_path: Path) -> None:
    job = write_job(score={"model": make_encoder(tmp_path / "model"), "overflow": "truncate"})
    told, console = tmp_path / "figures.json", Console(record=True, width=160)
    figures = bench.run_bench(
        load_settings(job), rows=20, rounds=2, texts="short", spark=False, json_path=told, console=console
    )
    assert [figure.name for figure in figures] == [
        "one row at a time, same precision",
        "Hugging Face pipeline, batch 32",
        "SentenceTransformer.encode, float32",
        "SentenceTransformer.encode, bfloat16",
        "forward pass alone",
        "gristmill",
    ]
    assert figures[-1].ratio == 1
    assert "all that is not the forward pass, gristmill" in console.export_text()
    kept = json.loads(told.read_text())
    assert (kept["rows"], kept["rounds"], len(kept["figures"])) == (20, 2, 6)
    assert kept["figures"][0].keys() == {"name", "seconds", "rows_per_s", "tokens_per_s", "real_share", "ratio"}


def test_the_first_run_of_a_contender_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = 0.0, []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)

    def run() -> None:
        nonlocal now
        now += 1.0 if calls else 30.0  # an engine starts
        calls.append(now)

    assert bench._time_rounds([Contender("gristmill", run, 1.0)], 2, Console(quiet=True)) == {"gristmill": [1.0, 1.0]}
