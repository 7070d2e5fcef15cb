"""The command as a user calls it, in a process of its own: exit codes, and what the terminal shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs import cli
from tests.conftest import ROOT
from tests.models import make_encoder

WriteJob = Callable[..., Path]


def _gristmill(*args: str | Path, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from jobs.cli import main; main()", *map(str, args)]
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.cluster
def test_a_job_scores_and_shows_a_summary_without_sparks_noise(write_job: WriteJob, tmp_path: Path) -> None:
    done = _gristmill("score", write_job(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "empty_input" in done.stderr
    assert "engine loads" in done.stderr
    for noise in ("WARN", "incubator", "log4j", "Traceback", "Loading weights", "Stage"):
        assert noise not in done.stderr
    again = _gristmill("score", write_job(), cwd=tmp_path)
    assert again.returncode == 0  # nothing is new
    assert re.search(r"rows +0, there was nothing to score", again.stderr)
    shown = _gristmill("score", write_job(), "--show", "5", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr  # which asked for no Spark, but for what is shown
    assert "a red kettle" in shown.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "job.yaml", "out"]


@pytest.mark.cluster
@pytest.mark.long
def test_a_dry_run_shows_texts_tokens_and_plan_and_writes_nothing(write_job: WriteJob, tmp_path: Path) -> None:
    done = _gristmill("score", write_job(score={"text": "Item: {{ text }}"}), "--dry-run", COLUMNS="160")
    assert done.returncode == 0, done.stderr
    for told in ("id bigint, text string", "Item: a red kettle", "empty_input", "3 rows in", "feature-extraction"):
        assert told in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.cluster
@pytest.mark.long
def test_too_many_failed_rows_exit_with_3(write_job: WriteJob, tmp_path: Path) -> None:
    done = _gristmill("score", write_job(), "--set", "limits.max_error_rate=0.2")
    assert done.returncode == 3
    assert "1 of 3 rows failed" in done.stderr
    (kept,) = (tmp_path / "out/_gristmill/runs").iterdir()
    assert json.loads(kept.read_text())["status"] == "failed"


def test_no_java_is_told_in_a_few_lines(write_job: WriteJob, tmp_path: Path) -> None:
    done = _gristmill("score", write_job(), PATH=str(tmp_path), JAVA_HOME="")
    assert done.returncode == 2
    assert "no Java found" in done.stderr
    assert "apt-get install" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["score", "nothing.yaml"], "No such file"),
        (["score", "conf/catalog_tagging.yaml", "--set", "score.labels=[]"], "needs labels"),
        (["score", "conf/catalog_tagging.yaml", "--set", "score.trust_remote_code=true"], "there is no such key"),
        (["score", "conf/catalog_tagging.yaml", "--sett", "x"], "No such option"),
        (["bench", "conf/catalog_tagging.yaml", "--texts", "poems"], "docstrings"),
        (["bench", "conf/catalog_tagging.yaml", "--host", "--against", "conf"], "no checkout of gristmill"),
        (["bench", "conf/search_reranking.yaml"], "compares nothing for pairs"),
        (["bench", "conf/news_summaries.yaml", "--engine"], "`gristmill bench` without them"),
        (["bench", "conf/news_summaries.yaml", "--shape", "minilm-l6"], "`gristmill bench` without them"),
    ],
)
def test_a_wrong_call_exits_with_2_and_a_line(args: list[str], told: str) -> None:
    done = _gristmill(*args)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_pickled_model_is_brought_in_and_a_hostile_one_exits_with_2_and_a_line(tmp_path: Path) -> None:
    model = Path(make_encoder(tmp_path / "model"))
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    done = _gristmill("import", model, "here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "39 tensors written as safetensors and compared; unpickled with" in done.stderr
    assert (tmp_path / "here/gristmill_import.json").exists()
    again = _gristmill("import", model, "here", cwd=tmp_path)
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
    torch.save({"w": torch.nn.Linear(1, 1)}, model / "pytorch_model.bin")
    bad = _gristmill("import", model, "there", cwd=tmp_path)
    assert (bad.returncode, len(bad.stderr.splitlines())) == (2, 1)
    assert "pytorch_model.bin is not brought in: it asks for something that makes no tensors" in bad.stderr
    assert not (tmp_path / "there").exists()


def test_where_spark_does_not_start_its_log_is_named_and_kept(write_job: WriteJob) -> None:
    done = _gristmill("score", write_job(spark={"master": "local[0]"}))
    assert done.returncode == 2
    assert "Spark does not start on local[0]" in done.stderr
    log = Path(re.findall(r"Spark's log is in (\S+)", done.stderr)[0])
    assert log.read_text()
    log.unlink()


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (PermissionError("[Errno 13] Cannot list directory '/data/in'"), 2, "'/data/in'; give this user the right"),
        (FileNotFoundError("hdfs://nn/out/_gristmill/marks"), 1, "marks; what was committed stays, run the same"),
    ],
)
def test_what_a_file_system_refuses_is_told_in_a_line(
    error: OSError, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "app", refuse)
    assert cli._run(["score", "job.yaml"]) == code
    assert told in capsys.readouterr().err


def test_the_doctor_names_everything_and_what_mends_it(tmp_path: Path) -> None:
    well = _gristmill("doctor")
    assert well.returncode == 0, well.stdout
    for name in ("Java", "pyspark", "torch", "precision", "memory", "model hub", "demo model"):
        assert name in well.stdout
    ill = _gristmill("doctor", "conf/feedback_sentiment.yaml", PATH=str(tmp_path), JAVA_HOME="", HF_HOME=str(tmp_path))
    assert ill.returncode == 2
    assert "apt-get install openjdk-17" in ill.stdout
    assert "hf download" in ill.stdout
