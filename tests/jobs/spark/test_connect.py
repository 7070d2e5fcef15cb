"""A job through Spark Connect, on the server that Spark starts for itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from tests.conftest import ROOT
from tests.models import make_encoder
from tests.registries import open_registry

pytestmark = [pytest.mark.cluster, pytest.mark.long]


def _score(job: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from jobs.cli import main; main()", "score", str(job)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SPARK_REMOTE": "local[2]", "SPARK_LOCAL_IP": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    rows = ds.dataset(tmp_path / "out", format="parquet", partitioning="hive").to_table().to_pylist()
    assert {row["id"]: row["outcome"] for row in rows} == {1: "succeeded", 2: "failed", 3: "succeeded"}
    (report,) = (tmp_path / "out/_gristmill/runs").glob("*.json")
    assert json.loads(report.read_text())["increments"] == 1


def test_a_job_runs_through_spark_connect(write_job: Callable[..., Path], tmp_path: Path) -> None:
    _score(write_job(), tmp_path)


def test_a_registered_model_goes_through_spark_connect(
    write_job: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    registry = open_registry(tmp_path / "registry", monkeypatch)
    registry.add_sentences("embedder", make_encoder(tmp_path / "model"), alias="champion")
    _score(write_job(score={"model": "models:/embedder@champion"}), tmp_path)
