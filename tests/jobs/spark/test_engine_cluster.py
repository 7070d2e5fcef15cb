"""Engines under a real cluster: two executors, each with pretended GPUs and two task slots."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from tests.conftest import LIGHT_JVM, ROOT
from tests.engine_faults import plant, read_lines
from tests.models import VOCABULARY, WORDS, make_encoder
from tests.processes import running_engines

pytestmark = [pytest.mark.cluster, pytest.mark.long]
HARMLESS = [word for word in WORDS if word != "poison"]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where this test's engines live; none may be left there."""
    folder = Path(tempfile.mkdtemp(prefix="gm-"))
    yield folder
    until = time.monotonic() + 10
    while running_engines(folder) and time.monotonic() < until:
        time.sleep(0.2)
    assert running_engines(folder) == []
    assert list(folder.glob("gristmill-*/*")) == []
    shutil.rmtree(folder, ignore_errors=True)


class Cluster:
    """Runs a scenario of `engine_app.py` and reads what it committed."""

    def __init__(self, temporary: Path, tmp_path: Path) -> None:
        self.temporary, self.path = temporary, tmp_path
        self.starts = tmp_path / "starts"

    def run(
        self, scenario: str, texts: list[str], *, gpus: int = 1, model: str | None = None, **faults: Any
    ) -> dict[str, Any]:
        pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), self.path / "in.parquet")
        site = plant(self.path / "site", starts=str(self.starts), on_gpu=True, **faults)
        discovery = self.path / "gpus.sh"
        addresses = json.dumps([str(n) for n in range(gpus)])
        discovery.write_text(f'#!/bin/sh\necho \'{{"name": "gpu", "addresses": {addresses}}}\'\n')
        discovery.chmod(0o755)
        job = {
            "input": {"path": str(self.path / "in.parquet")},
            "output": {"path": str(self.path / "out"), "columns": ["id"]},
            "score": {
                "task": "feature-extraction",
                "model": model or make_encoder(self.path / "model"),
                "text": "text",
                "precision": "float32",
            },
            "batching": {"window_rows": 512},
            "spark": {
                "master": "local-cluster[2,2,1024]",
                "conf": {
                    "spark.ui.enabled": False,
                    "spark.executor.memory": "512m",
                    "spark.executor.extraJavaOptions": LIGHT_JVM,
                    # No task runs before both executors are there; else one may do all the work.
                    "spark.cores.max": 4,
                    "spark.scheduler.minRegisteredResourcesRatio": 1,
                    "spark.scheduler.maxRegisteredResourcesWaitingTime": "120s",
                    "spark.worker.resource.gpu.amount": gpus,
                    "spark.worker.resource.gpu.discoveryScript": str(discovery),
                    "spark.executor.resource.gpu.amount": gpus,
                    "spark.task.resource.gpu.amount": gpus / 2,
                    "spark.executorEnv.PYTHONPATH": site,
                    "spark.executorEnv.TMPDIR": str(self.temporary),
                },
            },
        }
        (self.path / "job.yaml").write_text(json.dumps(job))  # JSON is YAML
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "SPARK_LOCAL_IP": "127.0.0.1"}
        environment.pop("CUDA_VISIBLE_DEVICES", None)  # which hides GPUs, those that Spark gives here too
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests/jobs/spark/engine_app.py"), scenario, str(self.path / "job.yaml")],
            cwd=self.path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-6000:]
        return json.loads(done.stdout.splitlines()[-1])

    def rows(self) -> list[dict[str, Any]]:
        found = ds.dataset(self.path / "out", format="parquet", partitioning="hive", exclude_invalid_files=True)
        return found.to_table().to_pylist()


@pytest.fixture
def cluster(temporary: Path, tmp_path: Path) -> Cluster:
    return Cluster(temporary, tmp_path)


def _texts(rows: int) -> list[str]:
    return [" ".join((HARMLESS * 3)[row % 37 : row % 37 + 1 + row % 23]) + f" {row}" for row in range(rows)]


def _check_each_key_once(rows: list[dict[str, Any]], count: int, *, increments: int) -> None:
    keys = Counter((row["increment"], row["id"]) for row in rows)
    assert keys == {(increment, row): 1 for increment in range(increments) for row in range(count)}


def _engines(rows: list[dict[str, Any]]) -> set[str]:
    return {row["prediction"]["engine"] for row in rows if row["prediction"]["engine"]}


def test_each_gpu_of_two_executors_loads_one_model_however_their_workers_come_and_go(cluster: Cluster) -> None:
    seen = cluster.run("idle_and_killed_workers", _texts(6000), gpus=2)
    assert seen["workers_before"] >= 2
    assert seen["workers_after_idling"] == 0
    assert seen["killed"] == 1
    rows = cluster.rows()
    _check_each_key_once(rows, 6000, increments=3)
    assert {row["outcome"] for row in rows} == {"succeeded"}
    by_gpu = Counter(name.split(":", 2)[2] for name in _engines(rows))  # a task goes to its own
    assert by_gpu == {"cuda:0/float32/packed": 2, "cuda:1/float32/packed": 2}
    assert len(read_lines(cluster.starts)) == 4


def test_an_executor_that_is_killed_takes_its_engine_along_and_costs_no_row(cluster: Cluster) -> None:
    seen = cluster.run("killed_executor", _texts(6000))
    assert len(seen["engine_gone_after_s"]) == 1
    assert seen["engine_gone_after_s"][0] < 5
    rows = cluster.rows()
    _check_each_key_once(rows, 6000, increments=2)
    assert {row["outcome"] for row in rows} == {"succeeded"}
    assert 2 <= len(read_lines(cluster.starts)) <= 3  # the executor that Spark started in its place may have come late


def test_a_poisonous_text_among_20000_fails_alone_in_each_increment_and_costs_no_task(cluster: Cluster) -> None:
    texts = _texts(20_000)
    texts[12_345] = "red poison"
    seen = cluster.run("poison", texts, poison=VOCABULARY["poison"], way="segfault")
    assert seen["failed_tasks"] == 0
    rows = cluster.rows()
    _check_each_key_once(rows, 20_000, increments=2)
    failed = [row for row in rows if row["outcome"] == "failed"]
    assert [(row["id"], row["prediction"]["error"]["code"]) for row in failed] == [(12_345, "device_fault")] * 2
    assert 4 <= len(read_lines(cluster.starts)) <= 6  # two loads, two deaths; two more if another executor met it
