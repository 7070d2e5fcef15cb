"""Answers in tables of Delta and Iceberg: killed at every step, merged, retried, followed, refused.

Real drivers with real kills on `local[2]`; `tests/fetch_lakehouse.py` brings the formats, and the Spark that they want.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.fetch_lakehouse import TARGET
from tests.jobs.test_faults import Job, until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not TARGET.is_dir(), reason="python -m tests.fetch_lakehouse brings the formats"),
]
KINDS = pytest.mark.parametrize("kind", ["delta", "iceberg"])
HERE = "tests/jobs/output"


def _run(app: str, *args: str, folder: Path) -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, str(ROOT / HERE / app), *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{TARGET / 'spark'}:{ROOT}", "SPARK_LOCAL_IP": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-6000:]
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return found


class TableJob(Job):
    """A job on files whose answers go to a directory of Delta or Iceberg; see `Job`."""

    def __init__(self, path: Path, kind: str, *, mode: str, **more: Any) -> None:
        from tests.jobs.output.table_app import SPARK

        jars = ",".join(map(str, sorted((TARGET / "jars").iterdir())))
        output = {"format": kind, "mode": mode}
        conf = {**SPARK, "spark.jars": jars}
        super().__init__(path, output=output, spark={"master": "local[2]", "conf": conf}, **more)
        self.kind, self.state = kind, path / "out.gristmill"
        self.packages = f"{TARGET / 'spark'}:"
        if mode == "merge":  # rows without a key all stay, of others one of each
            self.keys = Counter({key: rows if key is None else 1 for key, rows in self.keys.items()})

    def committed(self) -> int:
        return len(list(self.state.glob("_gristmill/marks/increment=*.json")))

    def reports(self) -> list[dict[str, Any]]:
        return [json.loads(p.read_text()) for p in sorted((self.state / "_gristmill/runs").glob("*.json"))]

    @cache  # noqa: B019 - it is the test that ends
    def read(self, _: int) -> dict[str, Any]:
        return _run("table_reader.py", self.kind, str(self.out), folder=self.path)

    def look(self) -> tuple[list[dict[str, Any]], int]:
        """Rows of the table, and the transactions that made it."""
        found = self.read(sum(1 for _ in self.out.rglob("*")))
        return found["rows"], found["commits"]

    def check_table(self) -> None:
        """Hold the table against the input."""
        rows, commits = self.look()
        assert Counter(row["id"] for row in rows) == self.keys
        wrong = [r["id"] for r in rows if r["outcome"] == "succeeded" and r["embedding"] != self.answer(r)]
        assert not wrong
        assert all(row["code"] for row in rows if row["outcome"] == "failed")
        assert commits == len({row["increment"] for row in rows}), "each increment is one transaction"
        assert not list(self.state.rglob("writing/*/*"))


UNTIL_MARKED = [("before the write", 1, 0), ("during the write", 1, 0), ("after the write", 1, 0)]
ONCE_MARKED = [
    ("before it is in the table", 1, 1),
    ("during the transaction", 2, 2),  # the first is the one before, which is done now
    ("in the table, not noted", 3, 3),  # two marks of each, but for the one that is left
    ("its failed rows are kept", 2, 4),
    ("before the report", 1, 4),
]


@KINDS
@pytest.mark.parametrize("mode", ["append", "merge"])
@pytest.mark.parametrize("steps", [UNTIL_MARKED, ONCE_MARKED], ids=["until_marked", "once_marked"])
def test_a_driver_that_is_killed_at_every_step_of_a_table_loses_nothing_and_writes_nothing_twice(
    kind: str, mode: str, steps: list[tuple[str, int, int]], tmp_path: Path
) -> None:
    files = max(1, steps[-1][2])
    job = TableJob(tmp_path, kind, mode=mode, files=files)
    for number, (step, times, there) in enumerate(steps):
        fault = {"step": step, "times": times, "marker": str(tmp_path / f"killed-{number}")}
        job.run(code=-signal.SIGKILL, driver=fault)
        assert job.committed() == there, step
    told = job.run()
    assert ("have a null in input.key" in told) == (mode == "merge" and steps is UNTIL_MARKED)
    job.check_table()
    assert sum(report["rows"] for report in job.reports()) == (60 if steps is UNTIL_MARKED else 0)
    totals = json.loads(_report(job.out))
    assert (totals["rows"], totals["failed_by_code"]) == (60 * files, {"empty_input": files})


def _report(out: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", "from jobs.cli import main; main()", "report", str(out), "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


@KINDS
def test_a_table_that_cannot_be_written_to_gets_its_increment_later_and_a_killed_retry_is_gone_on_with(
    kind: str, tmp_path: Path
) -> None:
    job = TableJob(
        tmp_path, kind, mode="merge", files=2, rows=300, batching={"max_batch_tokens": 48, "window_rows": 32}
    )
    told = job.run(code=1, driver={"step": "before it is in the table", "way": "fail", "marker": str(tmp_path / "a")})
    assert "No space left on device" in told
    assert "Traceback" not in told
    assert job.committed() == 1
    told = job.run(code=4, engine={"sleep_s": 0.3}, driver={"deadline_in_s": 9})
    expired = job.reports()[-1]["left"]["expired_rows"]
    assert expired
    for number, step in enumerate(["retry is kept, not shown", "before it is in the table", "in the table, not noted"]):
        fault = {"step": step, "marker": str(tmp_path / f"killed-{number}")}
        job.run("retry", "--only", "expired", code=-signal.SIGKILL, driver=fault)
    job.run("retry", "--only", "expired")
    rows, _ = job.look()
    assert Counter(row["id"] for row in rows) == job.keys
    # Those without a text: one that came too late fails again, and stays in the table as it was.
    assert sorted(row["id"] for row in rows if row["code"]) == [0, 100_000]
    assert {row["code"] for row in rows} <= {None, "empty_input", "expired"}
    assert all(row["embedding"] == job.answer(row) for row in rows if row["outcome"] == "succeeded")


@KINDS
def test_a_killed_java_a_second_driver_and_a_signal_in_the_midst_of_a_transaction_cost_nothing(
    kind: str, tmp_path: Path
) -> None:
    job = TableJob(tmp_path, kind, mode="append", files=3)
    step = {"step": "before it is in the table"}
    told = job.run(code=5, driver={**step, "way": "kill java", "marker": str(tmp_path / "no java")})
    assert "Spark's Java process has ended or was killed" in told
    for signal_, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        hangs = tmp_path / f"hangs-{code}"
        process = job.start(driver={**step, "way": "hang", "marker": str(hangs)})
        until(hangs.exists)
        if code == 143:
            assert "is being worked on by process" in job.run(code=2)
        process.send_signal(signal_)
        told = process.communicate(timeout=60)[1]
        assert (process.returncode, "Traceback" in told) == (code, False), told
    job.run()
    job.check_table()


@KINDS
def test_rows_that_come_again_or_are_retried_replace_what_they_were(kind: str, tmp_path: Path) -> None:
    told = _run("table_app.py", "merged", kind, str(tmp_path), folder=tmp_path)["told"]
    assert told["first: rows"] == [[1, "succeeded", 0], [2, "succeeded", 0], [3, "failed", 0]]
    assert told["again, twice, and without a key"][:2] == ["completed", 4]
    assert told["again: rows"] == [
        [None, "succeeded", 1], [None, "succeeded", 1], [1, "succeeded", 0], [2, "succeeded", 1], [3, "failed", 0],
    ]  # fmt: skip
    assert told["mended by the key"][:2] == ["completed", 1]
    assert told["mended: rows"][2:] == [[1, "succeeded", 0], [2, "succeeded", 1], [3, "succeeded", 1_000_000]]
    assert told["nothing left"][:2] == ["completed", 0]


@KINDS
def test_changed_rows_are_scored_again_and_deleted_ones_disappear(kind: str, tmp_path: Path) -> None:
    told = _run("table_app.py", "followed", kind, str(tmp_path), folder=tmp_path)["told"]
    if kind == "delta":
        assert "delta.enableChangeDataFeed" in told["no feed yet"]
    assert [row[:2] for row in told["first: rows"]] == [[n, "succeeded"] for n in (1, 2, 3, 4, 5)]
    assert told["changed"][:2] == ["completed", 2]
    assert [row[0] for row in told["changed: rows"]] == [2, 3, 4, 5, 6]
    assert told["keys"][:2] == ["completed", 2]
    assert [row[0] for row in told["keys: rows"]] == [2, 4, 5, 6, 7]
    assert told["nothing new"] == ["completed", 0, 0]
    assert told["deleted alone"][:2] == ["completed", 0]
    assert [row[0] for row in told["deleted alone: rows"]] == [2, 5, 6, 7]
    assert [row[0] for row in told["one of two: rows"]] == [2, 5, 6, 7]
    assert told["overwritten"][:2] == ["completed", 4]
    assert [row[0] for row in told["overwritten: rows"]] == [2, 5, 8, 9]
    assert "differs in input.changes" in told["not followed"]


@KINDS
def test_what_a_table_is_refused_for_is_told_before_anything_is_written(kind: str, tmp_path: Path) -> None:
    told = _run("table_app.py", "refused", kind, str(tmp_path), folder=tmp_path)["told"]
    assert "has other columns than this job writes" in told["other columns"]
    assert "it has other" in told["other columns"]
    assert "holds rows that no job of output.state" in told["foreign rows"]
    assert "is no output of gristmill" in told["foreign rows, overwritten"]
    assert "--overwrite" not in told["other columns"]
    assert told["untouched"] == [[1, "a"]]
    for way in ("itself", "itself, overwritten", "itself by a query", "itself by its path"):
        assert "answers would be read as input" in told[way], way
    assert told["input"] == 1
    assert told["no catalog"].startswith("OutputError: nowhere.db.answers")
    assert "is of format parquet" in told["another format"]
    assert told["states"] == []


@KINDS
def test_an_overwritten_table_holds_the_new_job_s_rows_alone(kind: str, tmp_path: Path) -> None:
    told = _run("table_app.py", "afresh", kind, str(tmp_path), folder=tmp_path)["told"]
    assert "differs in output.layout" in told["another layout"]
    assert told["overwritten"] == ["completed", 2]
    assert told["overwritten: rows"] == [[1, "succeeded", 0], [2, "succeeded", 0]]
    assert told["columns"][:2] == ["id", "embedding"]
    assert told["gone on"][:2] == ["completed", 1]
    assert [row[0] for row in told["gone on: rows"]] == [1, 2, 3]
    assert "is gone, and increments of this job are in it" in told["dropped"]
    assert told["nothing to score"] == ["completed", 0, []]


@KINDS
def test_a_second_job_adds_its_rows_to_a_table_whose_increments_have_the_same_numbers(
    kind: str, tmp_path: Path
) -> None:
    told = _run("table_app.py", "shared", kind, str(tmp_path), folder=tmp_path)["told"]
    assert told["another job"][:2] == ["completed", 3]
    assert [row[0] for row in told["shared: rows"]] == [1, 1, 2, 2, 3, 3]


@KINDS
def test_a_directory_is_a_table_too_with_columns_by_themselves_and_partitions(kind: str, tmp_path: Path) -> None:
    told = _run("table_app.py", "paths", kind, str(tmp_path), folder=tmp_path)["told"]
    failed = [3, "failed", "input_too_long"]
    assert told["append: rows"] == told["merge: rows"] == [[1, "succeeded", None], [2, "succeeded", None], failed]
    assert told["append retried"][:2] == ["completed", 1]
    assert told["append: columns"][:3] == ["id", "embedding", "error_code"]
    assert told["append: columns"][-2:] == ["outcome", "increment"]
    assert told["merge: beside"] == ["out merge.x", "out merge.x.gristmill"]
    assert "and no table; name an empty directory" in told["no table"]
    assert told["near"][:2] == ["completed", 3]
    assert told["near again"][:2] == ["completed", 1]
    assert told["near: rows"] == [1, 2, 3, 4]


def test_a_format_that_spark_does_not_know_is_told_with_what_to_set(tmp_path: Path) -> None:
    job = TableJob(tmp_path, "delta", mode="append", files=1)
    job.packages = ""
    told = job.run("score", "--set", "spark.conf={}", code=2)
    assert "Spark knows no format delta" in told
    assert "spark.jars.packages: io.delta" in told
    assert not job.state.exists()
